package unseal

import (
	"crypto/subtle"
	"fmt"
	"io"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// Bundle is an opened code bundle: reads the tar. Close wipes it.
type Bundle struct {
	io.Reader
	m *Message
}

// Close ends the bundle.
func (b *Bundle) Close() error { return b.m.Close() }

// OpenBundle opens a bundle (role 3), verifies it to its end, and checks its
// digest before it hands a byte of it on. want.Context is the revision of the
// verified descriptor and digest that descriptor's bundle digest: another bundle
// is refused with sealed.CodeStaleRevision. A plaintext of more than limit bytes
// gives ErrTooLong; spool holds ciphertext beyond HoldLimit.
func (o *Opener) OpenBundle(r io.Reader, want Expect, digest sealed.Digest, spool SpoolFunc, limit int64) (_ *Bundle, retErr error) {
	if want.Role != sealed.RoleBundle {
		return nil, fmt.Errorf("unseal: open bundle: role is %s", want.Role)
	}
	m, err := o.Open(r, want)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			m.Close()
		}
	}()
	if err := m.take(); err != nil {
		return nil, err
	}
	h, size := sm3.New(), int64(0)
	body, err := m.hold(spool, func(text []byte) error {
		if size += int64(len(text)); size > limit {
			return ErrTooLong
		}
		h.Write(text)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(h.Sum(nil), digest[:]) != 1 {
		return nil, refuse(sealed.CodeStaleRevision, "the bundle is not the one of the descriptor")
	}
	if _, err := io.CopyN(io.Discard, body, sealed.BundleNonce); err != nil {
		return nil, refuse(sealed.CodeFormat, "the bundle is shorter than its random bytes")
	}
	return &Bundle{Reader: body, m: m}, nil
}
