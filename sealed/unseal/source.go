package unseal

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
	"github.com/faasd-sec/faasd-sec/sealed/internal/slab"
	"github.com/faasd-sec/faasd-sec/sealed/internal/wire"
)

func refuse(code sealed.Code, detail string) error { return &sealed.Error{Code: code, Detail: detail} }

// source reads a transport body through one pooled buffer, in which records are
// decrypted where they lie.
type source struct {
	r      io.Reader
	buf    *slab.Buffer
	lo, hi int // what was read and not yet taken
	used   int // of buf, to be wiped
	eof    bool
	one    [1]byte // to look for more in; not buf: the final record's plaintext lies there
}

func newSource(r io.Reader) *source {
	s := new(source)
	s.init(r)
	return s
}

func (s *source) init(r io.Reader) { s.r, s.buf = r, slab.Get() }

func (s *source) close() {
	slab.Put(s.buf, s.used)
	s.buf, s.r = nil, nil
}

// fill makes n bytes available, reading as much as there is room for. At the end
// of the body it returns truncated.
func (s *source) fill(n int, where string) error {
	if s.hi-s.lo >= n {
		return nil
	}
	if s.lo == s.hi {
		s.lo, s.hi = 0, 0
	}
	if s.lo+n > len(s.buf) {
		copy(s.buf[:], s.buf[s.lo:s.hi])
		s.lo, s.hi = 0, s.hi-s.lo
	}
	for idle := 0; s.hi-s.lo < n; {
		if s.eof {
			return refuse(sealed.CodeTruncated, "ends inside "+where)
		}
		m, err := s.r.Read(s.buf[s.hi:])
		s.hi += m
		s.used = max(s.used, s.hi)
		switch {
		case errors.Is(err, io.EOF):
			s.eof = true
		case err != nil:
			return fmt.Errorf("unseal: read %s: %w", where, err)
		case m > 0:
			idle = 0
		default:
			if idle++; idle > 100 {
				return fmt.Errorf("unseal: read %s: %w", where, io.ErrNoProgress)
			}
		}
	}
	return nil
}

func (s *source) peek(n int) []byte { return s.buf[s.lo : s.lo+n] }

func (s *source) skip(n int) { s.lo += n }

// ended refuses bytes that are left.
func (s *source) ended() error {
	if s.lo != s.hi {
		return refuse(sealed.CodeTruncated, "goes on after its final record")
	}
	for idle := 0; !s.eof; {
		n, err := s.r.Read(s.one[:])
		switch {
		case n > 0:
			return refuse(sealed.CodeTruncated, "goes on after its final record")
		case errors.Is(err, io.EOF):
			s.eof = true
		case err != nil:
			return fmt.Errorf("unseal: read the end of the body: %w", err)
		default:
			if idle++; idle > 100 {
				return fmt.Errorf("unseal: read the end of the body: %w", io.ErrNoProgress)
			}
		}
	}
	return nil
}

// records takes records off a source and verifies them.
type records struct {
	src   *source
	aead  cipher.AEAD
	base  [12]byte
	nonce [12]byte // scratch, so that it is not allocated per record
	count uint64   // records taken
	final bool     // the final record was verified, and the body ended with it
}

// header waits for the next record's header and judges it, before a byte of the
// record itself is waited for.
func (r *records) header() (n int, final bool, err error) {
	if err := r.src.fill(wire.RecordHeader, "a record's header"); err != nil {
		return 0, false, err
	}
	if r.count == sealed.MaxRecords {
		return 0, false, refuse(sealed.CodeRecord, "more than 2^24 records")
	}
	v := binary.BigEndian.Uint32(r.src.peek(wire.RecordHeader))
	n, final = int(v&^wire.FinalBit), v&wire.FinalBit != 0
	if n > sealed.MaxRecord || n == 0 && !final {
		return 0, false, refuse(sealed.CodeRecord, "a record's length is out of range")
	}
	return n, final, nil
}

// next returns a record's plaintext after its tag was verified, and in the case
// of the final record after nothing followed it. It is decrypted into the room
// behind dst if that is enough, else where it lies in the source's buffer, where
// it stays until the next call. keep is given the record's bytes before they are
// decrypted; it may be nil.
func (r *records) next(dst []byte, keep func([]byte) error) ([]byte, error) {
	n, final, err := r.header()
	if err != nil {
		return nil, err
	}
	size := wire.RecordHeader + n + wire.Tag
	if err := r.src.fill(size, "a record"); err != nil {
		return nil, err
	}
	raw := r.src.peek(size)
	if keep != nil {
		if err := keep(raw); err != nil {
			return nil, err
		}
	}
	head, body := raw[:wire.RecordHeader], raw[wire.RecordHeader:]
	if dst = dst[len(dst):]; cap(dst) < n {
		dst = body[:0]
	}
	keysched.RecordNonce(&r.nonce, &r.base, r.count)
	text, err := r.aead.Open(dst, r.nonce[:], body, head)
	if err != nil {
		return nil, refuse(sealed.CodeRecord, "a record's tag does not match")
	}
	r.count++
	r.src.skip(size)
	if final {
		if err := r.src.ended(); err != nil {
			clear(text)
			return nil, err
		}
		r.final = true
	}
	return text, nil
}
