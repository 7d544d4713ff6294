package sealed

import (
	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
	"github.com/faasd-sec/faasd-sec/sealed/internal/wire"
)

// MaxPeek is the most bytes from the start of a body that Peek needs: no grant
// with a longer enc or sig can open.
const MaxPeek = wire.GrantFixed + wire.MaxName + 2 + der.MaxSeed + 1 + der.MaxSignature + wire.MessageSize

// Peeked is the clear part of an envelope, as claimed by whoever sent it.
type Peeked struct {
	Grant   GrantHeader
	Message MessageHeader
	Len     int // bytes of grant and message header; records follow
}

// GrantLen is how many of the first bytes are the grant.
func (p *Peeked) GrantLen() int { return p.Len - wire.MessageSize }

// Peek reads the clear part from the first bytes of a body (MaxPeek are always
// enough) without any key. It checks lengths, magic, suite, role, name and zero
// fields, but no signature, no digest and no curve point: the result may route
// or rate-limit, never authorise. Too few bytes give CodeTruncated.
func Peek(body []byte) (Peeked, error) {
	n, have, bad := wire.Extent(body)
	switch {
	case bad:
		return Peeked{}, refuse(CodeFormat, "does not begin with FSG1")
	case n > MaxPeek-wire.MessageSize:
		return Peeked{}, refuse(CodeFormat, "enc or sig is longer than any that can be valid")
	case !have || len(body) < n+wire.MessageSize:
		return Peeked{}, refuse(CodeTruncated, "ends inside the grant or the message header")
	}
	g, wrong := wire.ParseGrant(body[:n])
	if wrong != "" {
		return Peeked{}, refuse(CodeFormat, wrong)
	}
	m, wrong := wire.ParseMessage(body[n:], g.Role)
	if wrong != "" {
		return Peeked{}, refuse(CodeFormat, wrong)
	}
	return Peeked{Grant: HeaderOf(&g), Message: messageHeader(&m), Len: n + wire.MessageSize}, nil
}
