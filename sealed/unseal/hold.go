package unseal

import (
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/sealed/internal/slab"
)

// HoldLimit is how much plaintext Hold keeps in memory, in bytes; what is beyond
// goes to the spool as ciphertext.
const HoldLimit = 1 << 20

// SpoolFunc makes an empty spool for one message's ciphertext, positioned at its
// start. A spool that is an io.Closer is closed with the message.
type SpoolFunc func() (io.ReadWriteSeeker, error)

// Hold reads and verifies the whole message before it returns: up to HoldLimit
// is kept decrypted, the rest as ciphertext in a spool, and decrypted (and
// verified) again on reading. A nil spool refuses longer bodies with ErrTooLong.
func (m *Message) Hold(spool SpoolFunc) (io.Reader, error) {
	if err := m.take(); err != nil {
		return nil, err
	}
	return m.hold(spool, nil)
}

// hold is Hold; see is shown each piece of verified plaintext, in order.
func (m *Message) hold(spool SpoolFunc, see func([]byte) error) (io.Reader, error) {
	if see == nil {
		see = func([]byte) error { return nil }
	}
	if err := see(m.text); err != nil {
		return nil, err
	}
	if m.recs.final { // all of it is in the source's buffer
		return m.stream(), nil
	}
	h := &held{m: m}
	kept := len(m.text)
	if kept > 0 {
		h.keep(append(h.room(kept), m.text...))
	}
	for !m.recs.final {
		n, _, err := m.recs.header()
		if err != nil {
			return nil, err
		}
		if kept+n > HoldLimit {
			if err := h.spoolRest(spool, see); err != nil {
				return nil, err
			}
			break
		}
		text, err := m.recs.next(h.room(n), nil)
		if err != nil {
			return nil, err
		}
		h.keep(text)
		kept += n
		if err := see(text); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// held reads what Hold kept: the chunks, then the spool.
type held struct {
	m    *Message
	at   int // chunk
	off  int // in it
	rest *stream
}

// room returns space for n bytes behind the last chunk's content, taking another
// chunk only if there is none: any two neighbours together hold more than a
// buffer, so short records cannot make Hold take much more than HoldLimit.
func (h *held) room(n int) []byte {
	c := h.m.chunks
	if len(c) == 0 || len(c[len(c)-1].buf)-c[len(c)-1].n < n {
		h.m.chunks = append(h.m.chunks, chunk{buf: slab.Get()})
		c = h.m.chunks
	}
	last := &c[len(c)-1]
	return last.buf[last.n:last.n]
}

func (h *held) keep(text []byte) { h.m.chunks[len(h.m.chunks)-1].n += len(text) }

// spoolRest writes the remaining records' ciphertext to a spool while it
// verifies them, and prepares to decrypt them again.
func (h *held) spoolRest(makeSpool SpoolFunc, see func([]byte) error) error {
	m := h.m
	if makeSpool == nil {
		return ErrTooLong
	}
	spool, err := makeSpool()
	if err != nil {
		return fmt.Errorf("unseal: make a spool: %w", err)
	}
	m.spool, _ = spool.(io.Closer)
	first, size := m.recs.count, int64(0)
	write := func(raw []byte) error {
		n, err := spool.Write(raw)
		if err == nil && n != len(raw) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("unseal: write the spool: %w", err)
		}
		size += int64(n)
		return nil
	}
	for !m.recs.final {
		text, err := m.recs.next(nil, write)
		if err != nil {
			return err
		}
		if err := see(text); err != nil {
			return err
		}
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("unseal: rewind the spool: %w", err)
	}
	// The spool is not trusted: every tag is checked again, and a spool that was
	// changed ends the body in an error.
	m.again = newSource(io.LimitReader(spool, size))
	again := &records{src: m.again, aead: m.recs.aead, base: m.recs.base, count: first}
	h.rest = &stream{m: m, recs: again}
	return nil
}

// Read implements io.Reader.
func (h *held) Read(p []byte) (int, error) {
	if h.m.done {
		return 0, errTaken
	}
	if len(p) == 0 {
		return 0, nil
	}
	for h.at < len(h.m.chunks) {
		c := &h.m.chunks[h.at]
		if h.off < c.n {
			n := copy(p, c.buf[h.off:c.n])
			h.off += n
			return n, nil
		}
		h.at, h.off = h.at+1, 0
	}
	if h.rest == nil {
		return 0, io.EOF
	}
	return h.rest.Read(p)
}

// WriteTo implements io.WriterTo.
func (h *held) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for ; h.at < len(h.m.chunks) && !h.m.done; h.at, h.off = h.at+1, 0 {
		c := &h.m.chunks[h.at]
		n, err := w.Write(c.buf[h.off:c.n])
		total += int64(n)
		h.off += n
		if err == nil && h.off != c.n {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, err
		}
	}
	if h.m.done {
		return total, errTaken
	}
	if h.rest == nil {
		return total, nil
	}
	n, err := h.rest.WriteTo(w)
	return total + n, err
}

var _ io.WriterTo = (*held)(nil)
