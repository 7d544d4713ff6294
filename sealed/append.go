package sealed

import (
	"fmt"
	"slices"

	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
	"github.com/faasd-sec/faasd-sec/sealed/internal/wire"
)

// AppendRequest appends a whole sealed request to dst and returns the request's
// header and its link: what opening the reply takes.
func (g *Grant) AppendRequest(dst []byte, p MessageParams, h RequestHead, body []byte) ([]byte, MessageHeader, Link, error) {
	o, err := g.openAs(p, RoleRequest)
	if err != nil {
		return dst, MessageHeader{}, Link{}, err
	}
	defer o.free()
	head, err := h.AppendTo(o.head[:0])
	if err != nil {
		return dst, MessageHeader{}, Link{}, err
	}
	if dst, err = g.appendSealed(dst, o, head, body); err != nil {
		return dst, MessageHeader{}, Link{}, err
	}
	return dst, o.header, o.export(), nil
}

// AppendReply appends a whole sealed reply to dst.
func (g *Grant) AppendReply(dst []byte, p MessageParams, h ReplyHead, body []byte) ([]byte, error) {
	o, err := g.openAs(p, RoleReply)
	if err != nil {
		return dst, err
	}
	defer o.free()
	head, err := h.AppendTo(o.head[:0])
	if err != nil {
		return dst, err
	}
	return g.appendSealed(dst, o, head, body)
}

// Append appends a whole sealed message of a role without head (3 to 7) to dst.
func (g *Grant) Append(dst []byte, p MessageParams, body []byte) ([]byte, error) {
	if g.header.Role.HasHead() {
		return dst, fmt.Errorf("sealed: seal: a %s needs a head", g.header.Role)
	}
	o, err := g.open(p)
	if err != nil {
		return dst, err
	}
	defer o.free()
	return g.appendSealed(dst, o, nil, body)
}

func (g *Grant) openAs(p MessageParams, role Role) (*opening, error) {
	if g.header.Role != role {
		return nil, fmt.Errorf("sealed: seal: a %s under a grant for a %s", role, g.header.Role)
	}
	return g.open(p)
}

// appendSealed seals head and body as one plaintext. On an error dst is returned
// as it was.
func (g *Grant) appendSealed(dst []byte, o *opening, head, body []byte) ([]byte, error) {
	total := int64(len(head)) + int64(len(body))
	if total > MaxRecord*MaxRecords {
		return dst, errHuge
	}
	aead, err := o.keys.AEAD()
	if err != nil {
		return dst, fmt.Errorf("sealed: seal: %w", err)
	}
	out := o.appendPrefix(slices.Grow(dst, int(g.SealedLen(total))), g)

	for i := uint64(0); ; i++ {
		n := min(MaxRecord, len(head)+len(body))
		final := n == len(head)+len(body)
		at, text := len(out), len(out)+wire.RecordHeader
		out = out[:text]
		putRecordHeader(out[at:], n, final)
		keysched.RecordNonce(&o.nonce, &o.keys.Nonce, i)
		plain := body[:n-len(head)]
		body = body[n-len(head):]
		if len(head) > 0 {
			// Head and body meet in the first record: put them together where the
			// ciphertext goes, and encrypt there.
			out = append(append(out, head...), plain...)
			plain, head = out[text:], nil
		}
		aead.Seal(out[text:text], o.nonce[:], plain, out[at:text])
		out = out[:text+n+wire.Tag]
		if final {
			return out, nil
		}
	}
}
