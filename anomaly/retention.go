package anomaly

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// retention decides what goes so that a new segment fits, and returns the
// tombstone for its header. It removes nothing yet.
func (w *writer) retention() (tombstone, error) {
	list, err := listSegments(w.cfg.Dir)
	if err != nil {
		return tombstone{}, err
	}
	total := w.cfg.SegmentBytes // what the new one will have
	for _, f := range list {
		total += f.size
	}
	gone := 0
	for gone < len(list) && (total > w.cfg.MaxBytes || list[gone].number <= w.tomb.segment) {
		total -= list[gone].size
		gone++
	}
	if gone == 0 || list[gone-1].number <= w.tomb.segment {
		return w.tomb, nil
	}
	// What the next one's header says of its predecessor is what was removed. One
	// that cannot be read goes too: nothing could be tied to it.
	for _, f := range list[gone:] {
		if h, err := readHeader(f.path(w.cfg.Dir), w.parser); err == nil && h.Segment == f.number {
			return tombstone{segment: h.Segment - 1, seq: h.First - 1, digest: sealed.Digest(h.Previous)}, nil
		}
	}
	return tombstone{segment: w.number, seq: w.last, digest: w.end}, nil
}

// prune removes what tomb, which is signed and on the disk, says is removed: the
// oldest first, so that what is left is always in one piece.
func (w *writer) prune(tomb tombstone) error {
	news := tomb.segment > w.tomb.segment
	w.tomb = tomb
	if tomb.segment == 0 {
		return nil
	}
	list, err := listSegments(w.cfg.Dir)
	if err != nil {
		return err
	}
	var freed int64
	for _, f := range list {
		if f.number > tomb.segment {
			break
		}
		if err := os.Remove(f.path(w.cfg.Dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("anomaly: remove an old segment: %w", err)
		}
		freed += f.size
	}
	if news {
		w.log.note(Pruned, "", map[string]int64{"segment": int64(tomb.segment), "sequence": int64(tomb.seq), "bytes": freed})
	}
	return nil
}

// readHeader reads a segment's header and checks nothing of it but its form.
func readHeader(path string, p *parser) (*header, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("anomaly: read a header: %w", err)
	}
	defer f.Close()
	r, err := newCursor(f).next()
	if err != nil {
		return nil, err
	}
	return p.header(r.body)
}

// recordLen is the length of the first record in b, which Append put there,
// without the digest that it has not got yet.
func recordLen(b []byte) int { return 4 + int(binary.BigEndian.Uint32(b)) }
