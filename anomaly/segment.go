package anomaly

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// segmentCheck checks one segment by itself. What it found good stays in its
// fields when it ends in a *Break.
type segmentCheck struct {
	trusted sealed.Fingerprint
	number  uint64
	head    *head   // whether its checkpoint is here, or nil
	expect  *Anchor // whether it is here, or nil
	eager   bool    // verify each signature as it comes, not the last one alone: finds the exact place

	header   *header
	key      sealed.PublicKey
	last     uint64 // number of the last event, or before the first
	lastTime int64
	events   int
	digest   sealed.Digest // of the chain
	signed   Anchor        // last event under a signature in this segment, and the chain after it
	sigSum   sealed.Digest // SM3 of the last signature
	cpSeq    uint64        // what the last checkpoint names
	cpAfter  sealed.Digest // and the chain after it
	unsigned int           // events after the last signature
	sealed   bool          // by a final checkpoint
	end      int64         // offset behind the last good record
	torn     int64         // bytes after it that are an incomplete record
	records  int

	headSeen   bool
	anchorSeen bool
	anchorBad  *Break // the event is here, and the chain is another

	pending   *checkpoint // verified when it is the last, unless eager
	pendingAt record
	afterLast sealed.Digest // chain after the last event
	firstTime int64
}

// run reads f to its end.
func (s *segmentCheck) run(f *os.File, p *parser) error {
	c := newCursor(f)
	for {
		r, err := c.next()
		if err == nil {
			err = s.take(p, r)
		}
		s.digest, s.end = c.chain.cur, c.offset
		var b *Break
		switch {
		case err == nil:
			s.records++
			continue
		case errors.Is(err, errEnd), errors.Is(err, errTorn):
			if s.torn, err = c.rest(f); err != nil {
				return err
			}
			if s.records < 2 {
				return s.broken(c.offset, ReasonOrder, "it does not begin with a header and its signature")
			}
			return s.settle()
		case errors.As(err, &b):
			if r.body != nil { // the record is in the chain, and nothing else
				s.digest, s.end = r.before, r.offset
			}
			if err := s.settle(); err != nil {
				return err // an earlier signature is wrong already
			}
			return s.broken(b.Offset, b.Reason, b.Detail)
		default:
			return err
		}
	}
}

func (s *segmentCheck) broken(offset int64, reason Reason, detail string) *Break {
	return &Break{Segment: s.number, Offset: offset, Seq: s.last, Reason: reason, Detail: detail}
}

// settle verifies the last signature, which covers all before it.
func (s *segmentCheck) settle() error {
	if s.pending == nil {
		return nil
	}
	c := s.pending
	s.pending = nil
	if !sealed.Verify(s.key, c.Signature, labelCheckpoint, c.signed(s.header.LogID, s.number)) {
		return s.broken(s.pendingAt.offset, ReasonSignature, "the checkpoint's signature does not verify")
	}
	return nil
}

// take judges one record whose digest is right.
func (s *segmentCheck) take(p *parser, r record) error {
	bad := func(reason Reason, detail string) error {
		return &Break{Offset: r.offset, Reason: reason, Detail: detail}
	}
	t := typeOf(r.body)
	switch {
	case s.sealed:
		return bad(ReasonOrder, "a record after the final signature")
	case (s.records == 0) != (t == typeHeader), s.records == 1 && t != typeCheckpoint:
		return bad(ReasonOrder, "a segment begins with one header and its signature")
	case t == typeHeader:
		h, err := p.header(r.body)
		if err != nil {
			return bad(ReasonEncoding, err.Error())
		}
		s.key = sealed.PublicKey(h.Key)
		if f := s.key.Fingerprint(); f != s.trusted {
			return bad(ReasonKey, "it is signed by the key "+f.String())
		}
		if h.Segment != s.number {
			return bad(ReasonIdentity, "it is another segment by its header than by its name")
		}
		s.header, s.last = h, h.First-1
	case t == typeEvent:
		e, err := p.event(r.body)
		if err != nil {
			return bad(ReasonEncoding, err.Error())
		}
		if e.Seq != s.last+1 {
			return bad(ReasonSequence, "the event's number does not follow the one before")
		}
		if s.events == 0 {
			s.firstTime = e.TimeMs
		}
		s.last, s.lastTime, s.afterLast = e.Seq, e.TimeMs, r.after
		s.events++
		s.unsigned++
		if s.expect != nil && s.expect.Seq == e.Seq {
			if s.anchorSeen = s.expect.Digest == r.after; !s.anchorSeen {
				s.anchorBad = s.broken(r.offset, ReasonAnchor, "event "+strconv.FormatUint(e.Seq, 10)+" is another than the one remembered: the history was written anew")
			}
		}
	case t == typeCheckpoint:
		return s.sign(p, r, bad)
	default:
		return bad(ReasonEncoding, "no record has this type")
	}
	return nil
}

func (s *segmentCheck) sign(p *parser, r record, bad func(Reason, string) error) error {
	c, err := p.checkpoint(r.body)
	if err != nil {
		return bad(ReasonEncoding, err.Error())
	}
	if sealed.Digest(c.Digest) != r.before {
		return bad(ReasonChain, "the checkpoint signs another chain than the one before it")
	}
	if c.Seq != s.last {
		return bad(ReasonSequence, "the checkpoint's number is not that of the event before it")
	}
	if s.eager && !sealed.Verify(s.key, c.Signature, labelCheckpoint, c.signed(s.header.LogID, s.number)) {
		return bad(ReasonSignature, "the checkpoint's signature does not verify")
	}
	if !s.eager {
		s.pending, s.pendingAt = c, r
	}
	if s.events > 0 {
		s.signed = Anchor{Seq: s.last, Digest: s.afterLast}
	}
	s.sealed, s.unsigned, s.sigSum = c.Final, 0, sum(c.Signature)
	s.cpSeq, s.cpAfter = c.Seq, r.after
	if h := s.head; h != nil && h.Segment == s.number && h.Seq == c.Seq && sealed.Digest(h.Digest) == r.after && string(h.LogID) == string(s.header.LogID) {
		s.headSeen = true
	}
	return nil
}

// checkSegment checks the segment in path: quickly, and where that fails once
// more for the exact place. what holds the check's inputs.
func checkSegment(path string, p *parser, what segmentCheck) (*segmentCheck, error) {
	f, err := os.Open(path)
	if err != nil {
		return &what, fmt.Errorf("anomaly: open a segment: %w", err)
	}
	defer f.Close()
	s := what
	err = s.run(f, p)
	var b *Break
	if errors.As(err, &b) {
		s = what
		s.eager = true
		err = s.run(f, p)
	}
	return &s, err
}
