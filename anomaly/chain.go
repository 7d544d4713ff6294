package anomaly

import (
	"encoding/binary"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Labels of the digests and signatures, each for one purpose.
const (
	labelChain      = "faasd-sec/v1 anomaly\x00"
	labelCheckpoint = "faasd-sec/v1 anomaly checkpoint"
	labelHead       = "faasd-sec/v1 anomaly head"
)

// Anchor is an event's number and the chain's digest after it: remembered
// elsewhere, it holds the log to everything up to that event.
type Anchor struct {
	Seq    uint64        `json:"seq"`
	Digest sealed.Digest `json:"digest"`
}

// String is "SEQ:DIGEST", which ParseAnchor reads.
func (a Anchor) String() string { return strconv.FormatUint(a.Seq, 10) + ":" + a.Digest.String() }

// ParseAnchor reads "SEQ:DIGEST", as Verify reports it.
func ParseAnchor(s string) (Anchor, error) {
	const remedy = "give SEQ:DIGEST as faasd-sec audit verify prints it: a decimal number, a colon, 64 hex digits"
	num, hex, ok := strings.Cut(s, ":")
	seq, err := strconv.ParseUint(num, 10, 64)
	if !ok || err != nil || seq == 0 || strconv.FormatUint(seq, 10) != num {
		return Anchor{}, api.Invalid("anchor", remedy, "the number before the colon does not parse")
	}
	d, err := sealed.ParseDigest(hex)
	if err != nil {
		return Anchor{}, api.Invalid("anchor", remedy, fmt.Sprintf("the digest does not parse: %v", err))
	}
	return Anchor{Seq: seq, Digest: d}, nil
}

// chain is the running digest of one segment.
type chain struct {
	h   hash.Hash
	cur sealed.Digest // after the last record; zero before the first
}

func newChain() chain { return chain{h: sm3.New()} }

// next is the digest after record, which is its length and body. It does not
// move the chain.
func (c *chain) next(record []byte) (d sealed.Digest) {
	c.h.Reset()
	c.h.Write([]byte(labelChain))
	c.h.Write(c.cur[:])
	c.h.Write(record)
	c.h.Sum(d[:0])
	return d
}

// seal completes a record that begins at start of b with four bytes for its
// length: it fills them in, appends the digest and moves the chain.
func (c *chain) seal(b []byte, start int) []byte {
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	c.cur = c.next(b[start:])
	return append(b, c.cur[:]...)
}

// sum is SM3 of b.
func sum(b []byte) sealed.Digest { return sm3.Sum(b) }
