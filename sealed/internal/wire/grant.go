// Package wire is the layout of GRANT and MESSAGE, suite 0x0001: bytes to
// fields and back, with the rules that concern bytes alone. It knows no keys
// and no time. docs/envelope.md is the text it follows.
package wire

import (
	"encoding/binary"
	"strings"
)

// Sizes in bytes.
const (
	GrantFixed    = 202
	MessageSize   = 125
	BoundSize     = 93 // of MESSAGE: what its keys are derived from
	MaxName       = 255
	RecordHeader  = 4
	Tag           = 16
	FinalBit      = 1 << 31
	GrantMagic    = "FSG1"
	MessageMagic  = "FSM1"
	maxGrantBytes = GrantFixed + MaxName + 2 + 0xffff + 1 + 0xff

	// MaxEnvelope is the most that GRANT and MESSAGE can be together.
	MaxEnvelope = maxGrantBytes + MessageSize
)

// Grant is a decoded GRANT; Enc and Sig alias the input.
type Grant struct {
	Suite     uint16
	Role      uint8
	Recipient [16]byte
	Sender    [65]byte
	ReplyKey  [65]byte
	Context   [32]byte
	NotBefore uint64
	NotAfter  uint64
	Name      string
	Enc       []byte
	Sig       []byte
}

// Extent returns the length of the GRANT that b begins with. Where b is too
// short to know, or to hold it, have is false and n is how many bytes are needed
// to get further. bad is set when b does not begin with the magic: such bytes
// are not an envelope, however many follow.
func Extent(b []byte) (n int, have bool, bad bool) {
	if !strings.HasPrefix(GrantMagic, string(b[:min(len(b), len(GrantMagic))])) {
		return 0, false, true
	}
	if len(b) < GrantFixed {
		return GrantFixed, false, false
	}
	n = GrantFixed + int(b[GrantFixed-1]) + 2
	if len(b) < n {
		return n, false, false
	}
	n += int(binary.BigEndian.Uint16(b[n-2:])) + 1
	if len(b) < n {
		return n, false, false
	}
	n += int(b[n-1])
	return n, len(b) >= n, false
}

// ParseGrant decodes b, which is exactly one GRANT by Extent, and says what in
// it is malformed. Points are not checked against the curve, nor are enc and
// sig looked into.
func ParseGrant(b []byte) (g Grant, wrong string) {
	g.Suite = binary.BigEndian.Uint16(b[4:])
	g.Role = b[6]
	copy(g.Recipient[:], b[7:])
	copy(g.Sender[:], b[23:])
	copy(g.ReplyKey[:], b[88:])
	copy(g.Context[:], b[153:])
	g.NotBefore = binary.BigEndian.Uint64(b[185:])
	g.NotAfter = binary.BigEndian.Uint64(b[193:])
	rest := b[GrantFixed:]
	nameLen := int(b[GrantFixed-1])
	name := rest[:nameLen]
	encLen := int(binary.BigEndian.Uint16(rest[nameLen:]))
	g.Enc = rest[nameLen+2 : nameLen+2+encLen]
	g.Sig = rest[nameLen+2+encLen+1:]

	switch {
	case g.Suite != 1:
		return g, "suite is not 0x0001"
	case g.Role < 1 || g.Role > 7:
		return g, "role is not 1..7"
	case g.Sender[0] != 4:
		return g, "sender_pub is not an uncompressed point"
	case g.Role != 1 && g.ReplyKey != [65]byte{}:
		return g, "reply_pub is set outside role 1"
	case g.ReplyKey != [65]byte{} && g.ReplyKey[0] != 4:
		return g, "reply_pub is not an uncompressed point"
	case g.ReplyKey == g.Sender:
		return g, "reply_pub equals sender_pub"
	case (g.Role == 4 || g.Role == 5) && g.Context != [32]byte{}:
		return g, "context is set in role 4 or 5"
	case !ValidName(name):
		return g, "name is not [a-z0-9.-] with exactly one dot"
	}
	g.Name = string(name)
	return g, ""
}

// ValidName reports whether name is 1..255 bytes of [a-z0-9.-] with exactly one
// dot.
func ValidName[T ~string | ~[]byte](name T) bool {
	if len(name) < 1 || len(name) > MaxName {
		return false
	}
	dots := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			dots++
		case c == '-', c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		default:
			return false
		}
	}
	return dots == 1
}

// AppendUnsigned appends g up to, but without, sig_len: what the signature
// covers.
func (g *Grant) AppendUnsigned(b []byte) []byte {
	b = append(b, GrantMagic...)
	b = binary.BigEndian.AppendUint16(b, g.Suite)
	b = append(b, g.Role)
	b = append(b, g.Recipient[:]...)
	b = append(b, g.Sender[:]...)
	b = append(b, g.ReplyKey[:]...)
	b = append(b, g.Context[:]...)
	b = binary.BigEndian.AppendUint64(b, g.NotBefore)
	b = binary.BigEndian.AppendUint64(b, g.NotAfter)
	b = append(b, byte(len(g.Name)))
	b = append(b, g.Name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(g.Enc)))
	return append(b, g.Enc...)
}
