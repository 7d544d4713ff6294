package anomaly

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/faasd-sec/faasd-sec/sealed"
)

var (
	errEnd  = errors.New("anomaly: the segment ends here")
	errTorn = errors.New("anomaly: the segment ends inside a record")
)

// record is one record of a segment whose length and chain digest are right. It
// is good until the next one is read.
type record struct {
	offset int64
	body   []byte
	before sealed.Digest // the chain before it
	after  sealed.Digest // and with it
}

// cursor reads the records of one segment, which may be growing: at its end it
// can be asked again.
type cursor struct {
	f      io.ReaderAt
	offset int64 // of the next record
	chain  chain
	buf    []byte // what was read from bufOff on
	bufOff int64
	block  []byte
}

func newCursor(f io.ReaderAt) *cursor {
	return &cursor{f: f, chain: newChain(), block: make([]byte, 64<<10)}
}

// peek returns n bytes at the offset, fewer at the end of the file.
func (c *cursor) peek(n int) ([]byte, error) {
	at := int(c.offset - c.bufOff)
	if at < 0 || at+n > len(c.buf) {
		got, err := c.f.ReadAt(c.block, c.offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("anomaly: read a segment: %w", err)
		}
		c.buf, c.bufOff, at = c.block[:got], c.offset, 0
	}
	return c.buf[at:min(at+n, len(c.buf))], nil
}

// next reads one record and moves the chain. errEnd and errTorn leave the cursor
// where it was; a *Break, without its segment, is the end.
func (c *cursor) next() (record, error) {
	b, err := c.peek(4)
	if err != nil {
		return record{}, err
	}
	if len(b) < 4 {
		c.buf = nil // the writer may go on, or cut and write something else here
		if len(b) == 0 {
			return record{}, errEnd
		}
		return record{}, errTorn
	}
	n := binary.BigEndian.Uint32(b)
	if n == 0 || n > maxBody {
		if n == 0 && c.zeroes() {
			c.buf = nil
			return record{}, errTorn // a file system may have lengthened the file and not filled it
		}
		return record{}, &Break{Offset: c.offset, Reason: ReasonLength, Detail: fmt.Sprintf("a record of %d bytes, they have 1 to %d", n, maxBody)}
	}
	size := int(n) + overhead
	if b, err = c.peek(size); err != nil {
		return record{}, err
	}
	if len(b) < size {
		c.buf = nil
		return record{}, errTorn
	}
	r := record{offset: c.offset, body: b[4 : 4+n], before: c.chain.cur}
	r.after = c.chain.next(b[:4+n])
	if r.after != sealed.Digest(b[4+n:]) {
		return record{}, &Break{Offset: c.offset, Reason: ReasonChain, Detail: "the record was changed, or what is before it"}
	}
	c.chain.cur = r.after
	c.offset += int64(size)
	return r, nil
}

// zeroes reports whether nothing but NUL bytes is left.
func (c *cursor) zeroes() bool {
	b := make([]byte, len(c.block))
	for off := c.offset; ; {
		n, err := c.f.ReadAt(b, off)
		for _, v := range b[:n] {
			if v != 0 {
				return false
			}
		}
		if off += int64(n); err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}

// rest is how many bytes are not read.
func (c *cursor) rest(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("anomaly: size of a segment: %w", err)
	}
	return st.Size() - c.offset, nil
}
