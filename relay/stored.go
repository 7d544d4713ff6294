package relay

import (
	"fmt"
	"io"
)

// NewBody is a body that was stored: small where rest is nil and head has all of
// it, else head and what rest gives, size bytes in all. Reader is not for it;
// Release closes rest.
func NewBody(head []byte, rest io.ReadCloser, size int64) *Body {
	return &Body{Head: head, Small: rest == nil, size: size, stored: rest}
}

// tail is what follows Head.
func (b *Body) tail() io.Reader {
	if b.stored != nil {
		return b.stored
	}
	return b.rest
}

// SaveTo writes the reply's body to w, to its very end, and ends the reply. The
// request's Body is released by then.
func (r *Reply) SaveTo(w io.Writer) (n int64, err error) {
	r.once.Do(func() {
		n, err = io.Copy(w, r.body)
		if cerr := r.body.Close(); err == nil {
			err = cerr
		}
		r.req.Release()
		r.free()
		if err == nil && r.length >= 0 && n != r.length {
			err = fmt.Errorf("relay: %d bytes of a reply of %d: %w", n, r.length, io.ErrUnexpectedEOF)
		}
	})
	return n, err
}

// Each visits the headers of the reply that are for whoever gets it, names in
// lower case.
func (r *Reply) Each(f func(name, value string)) {
	r.each(func(name, value string) {
		if !connectionHeader(name) {
			f(name, value)
		}
	})
}
