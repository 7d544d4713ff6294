package sealed

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
	"github.com/faasd-sec/faasd-sec/sealed/internal/slab"
	"github.com/faasd-sec/faasd-sec/sealed/internal/wire"
)

var (
	errEnded = errors.New("sealed: write: the message has ended")
	errHuge  = errors.New("sealed: write: more than 2^24 records")
)

// SealRequest starts a request under a grant of role 1. Nothing is written to
// dst before the first record is full, Flush or Close.
func (g *Grant) SealRequest(dst io.Writer, p MessageParams, h RequestHead) (*Writer, error) {
	return g.sealWithHead(dst, p, RoleRequest, h.AppendTo)
}

// SealReply starts a reply under a grant of role 2.
func (g *Grant) SealReply(dst io.Writer, p MessageParams, h ReplyHead) (*Writer, error) {
	return g.sealWithHead(dst, p, RoleReply, h.AppendTo)
}

func (g *Grant) sealWithHead(dst io.Writer, p MessageParams, role Role, head func([]byte) ([]byte, error)) (*Writer, error) {
	if g.header.Role != role {
		return nil, fmt.Errorf("sealed: seal: a %s under a grant for a %s", role, g.header.Role)
	}
	w, err := g.newWriter(dst, p)
	if err != nil {
		return nil, err
	}
	out, err := head(w.buf[w.body:w.body])
	if err != nil {
		w.used = len(w.buf) // whatever was encoded before the error
		w.Abort()
		return nil, err
	}
	w.n = len(out)
	return w, nil
}

// Seal starts a message of a role without head (3 to 7).
func (g *Grant) Seal(dst io.Writer, p MessageParams) (*Writer, error) {
	if g.header.Role.HasHead() {
		return nil, fmt.Errorf("sealed: seal: a %s needs a head", g.header.Role)
	}
	return g.newWriter(dst, p)
}

// Writer seals a message while it is written, in records of up to MaxRecord
// bytes. It is not safe for concurrent use. Exactly one of Close and Abort ends
// it; both wipe its key.
type Writer struct {
	dst    io.Writer
	header MessageHeader
	link   Link
	aead   cipher.AEAD
	base   [12]byte
	nonce  [12]byte // scratch, so that it is not allocated per record
	count  uint64   // records sealed

	// One buffer holds GRANT, MESSAGE, a record header, and the record, which is
	// encrypted where it lies: nothing is copied but what Write is given.
	buf  *slab.Buffer
	from int // what is to be written next starts here
	body int // the record's plaintext starts here
	n    int // its length
	used int // of buf, to be wiped

	err  error
	done bool
}

func (g *Grant) newWriter(dst io.Writer, p MessageParams) (*Writer, error) {
	o, err := g.open(p)
	if err != nil {
		return nil, err
	}
	defer o.free()
	aead, err := o.keys.AEAD()
	if err != nil {
		return nil, fmt.Errorf("sealed: seal: %w", err)
	}
	w := &Writer{dst: dst, header: o.header, link: o.export(), aead: aead, base: o.keys.Nonce, buf: slab.Get()}
	prefix := o.appendPrefix(w.buf[:0], g)
	w.body = len(prefix) + wire.RecordHeader
	w.used = w.body
	return w, nil
}

// Header returns the message's header.
func (w *Writer) Header() MessageHeader { return w.header }

// Link returns a request's export secret; zero in every other role. It is known
// from the start, so a reply may be opened while the request is still written.
func (w *Writer) Link() Link { return w.link }

// Write adds plaintext.
func (w *Writer) Write(p []byte) (int, error) {
	if w.done {
		return 0, w.ended()
	}
	total := len(p)
	for len(p) > 0 {
		// A full record waits here until more comes, so that the last one is final.
		if w.n == MaxRecord {
			if err := w.emit(false); err != nil {
				return total - len(p), err
			}
		}
		n := copy(w.buf[w.body+w.n:w.body+MaxRecord], p)
		w.n += n
		p = p[n:]
	}
	return total, nil
}

// ReadFrom adds all of r, without another copy.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	if w.done {
		return 0, w.ended()
	}
	var total int64
	idle := 0
	for {
		room := w.buf[w.body+w.n : w.body+MaxRecord]
		if w.n == MaxRecord {
			// Look for the record's successor behind it: there is room after the tag.
			room = w.buf[w.body+MaxRecord+wire.Tag:]
		}
		n, err := r.Read(room)
		if n > 0 {
			idle = 0
			total += int64(n)
			if w.n == MaxRecord {
				w.used = max(w.used, w.body+MaxRecord+wire.Tag+n)
				if e := w.emit(false); e != nil {
					return total, e
				}
				copy(w.buf[w.body:], room[:n])
			}
			w.n += n
		} else if idle++; err == nil && idle > 100 {
			return total, io.ErrNoProgress
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("sealed: read the body: %w", err)
		}
	}
}

// Flush sends what is buffered as a short record.
func (w *Writer) Flush() error {
	if w.done {
		return w.ended()
	}
	if w.n == 0 {
		return w.err
	}
	return w.emit(false)
}

// Close writes the final record. It does not close the underlying writer. A
// second Close does nothing.
func (w *Writer) Close() error {
	if w.done {
		return w.err
	}
	err := w.emit(true)
	w.end()
	return err
}

// Abort ends the message without a final record, so that no reader takes it for
// whole. After Close it does nothing: defer it.
func (w *Writer) Abort() {
	if !w.done {
		if w.err == nil {
			w.err = errEnded
		}
		w.end()
	}
}

func (w *Writer) ended() error {
	if w.err != nil {
		return w.err
	}
	return errEnded
}

// end gives the buffer back, wiped, and forgets the key.
func (w *Writer) end() {
	slab.Put(w.buf, max(w.used, w.body+w.n))
	w.buf, w.aead, w.base, w.nonce, w.link, w.done = nil, nil, [12]byte{}, [12]byte{}, Link{}, true
}

// emit seals the buffered record where it lies and writes it, the first time
// with GRANT and MESSAGE before it.
func (w *Writer) emit(final bool) error {
	if w.err != nil {
		return w.err
	}
	if w.count == MaxRecords {
		w.err = errHuge
		return w.err
	}
	head := w.buf[w.body-wire.RecordHeader : w.body]
	putRecordHeader(head, w.n, final)
	keysched.RecordNonce(&w.nonce, &w.base, w.count)
	w.aead.Seal(w.buf[w.body:w.body], w.nonce[:], w.buf[w.body:w.body+w.n], head)
	w.count++
	end := w.body + w.n + wire.Tag
	w.used = max(w.used, end)
	n, err := w.dst.Write(w.buf[w.from:end])
	if err == nil && n != end-w.from {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.err = fmt.Errorf("sealed: write a record: %w", err)
		return w.err
	}
	w.from, w.n = w.body-wire.RecordHeader, 0
	return nil
}

func putRecordHeader(dst []byte, n int, final bool) {
	v := uint32(n)
	if final {
		v |= wire.FinalBit
	}
	binary.BigEndian.PutUint32(dst, v)
}
