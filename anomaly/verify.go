package anomaly

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Report is what Verify found.
type Report struct {
	OK       bool               `json:"ok"` // no break
	Breaks   []Break            `json:"breaks,omitempty"`
	Node     string             `json:"node"`
	Key      sealed.Fingerprint `json:"key"`
	LogID    string             `json:"log_id"` // 32 hex digits
	Segments int                `json:"segments"`
	Events   int                `json:"events"`
	FirstSeq uint64             `json:"first_seq"` // 0 without events, like the following
	LastSeq  uint64             `json:"last_seq"`
	FirstMs  int64              `json:"first_ms"` // unix milliseconds
	LastMs   int64              `json:"last_ms"`
	// Signed is the last event under a signature. It is the anchor to remember;
	// after a break it holds only what the segments after the break say.
	Signed   *Anchor `json:"signed,omitempty"`
	Unsigned int     `json:"unsigned_events"` // after it: who writes to the directory can change or cut these
	Torn     int64   `json:"torn_bytes"`      // at the end: a record that a crash, or somebody, cut
	Closed   bool    `json:"closed"`          // the writer ended in order, or runs between two segments
	// What retention removed, by a signed tombstone: up to this segment and event.
	PrunedSegment uint64 `json:"pruned_segment,omitempty"`
	PrunedSeq     uint64 `json:"pruned_seq,omitempty"`
}

// tries is how often Verify reads a log anew that its writer changes meanwhile.
const tries = 5

// errMoved means that the writer removed or renamed a segment meanwhile, or began
// one, and what was read of the log belongs to no one moment.
var errMoved = errors.New("anomaly: the log moved on while it was read; try again")

// Verify checks the log in dir, offline, by the public key with the fingerprint
// trusted. expect, unless nil, was remembered from an earlier report: the log
// must hold it. What is wrong with the log is in the report; the error is for a
// directory that cannot be read, or holds no log (api.CodeNotFound). It may run
// beside the writer.
func Verify(ctx context.Context, dir string, trusted sealed.Fingerprint, expect *Anchor) (*Report, error) {
	for try := 0; ; try++ {
		v := &verifier{dir: dir, trusted: trusted, expect: expect, final: try == tries-1}
		r, err := v.run(ctx)
		if !errors.Is(err, errMoved) || v.final {
			return r, err
		}
	}
}

type verifier struct {
	dir     string
	trusted sealed.Fingerprint
	expect  *Anchor
	final   bool // the last try: what is found counts
	parser  *parser
	report  Report
	list    []segmentFile

	head       *head
	headBroken bool // the file is no HEAD; told already
	headSeen   bool
	anchorSeen bool
	first      *header
	latest     *header                  // of the last segment with a good header and signature
	finals     map[uint64]sealed.Digest // last digest by segment
	prev       *segmentCheck            // the segment before, nil after a break
}

func (v *verifier) run(ctx context.Context) (*Report, error) {
	var err error
	if v.parser, err = newParser(); err != nil {
		return nil, err
	}
	v.finals = map[uint64]sealed.Digest{}
	// HEAD first: what is read of the segments afterwards is at least as new.
	if err := v.readHead(); err != nil {
		return nil, err
	}
	if v.list, err = listSegments(v.dir); err != nil {
		return nil, err
	}
	list := v.list
	if len(list) == 0 && v.head == nil && !v.headBroken {
		return nil, &api.Error{Code: api.CodeNotFound, Field: "DIR", Message: "there is no anomaly log in " + v.dir,
			Remedy: "name the directory that holds " + headName + " and files such as " + segmentName(1, false)}
	}
	for i, f := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if i > 0 && f.number == list[i-1].number {
			v.broken(Break{Segment: f.number, Reason: ReasonIdentity, Detail: "the segment is there twice, sound and set aside as damaged"})
			continue
		}
		if i > 0 && f.number != list[i-1].number+1 {
			if err := v.moved(); err != nil {
				return nil, err
			}
			v.broken(Break{Segment: list[i-1].number + 1, Reason: ReasonMissing, Detail: fmt.Sprintf("%d segments are not there", f.number-list[i-1].number-1)})
			v.prev = nil
		}
		if err := v.segment(f, i == len(list)-1); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(v.begin(), v.end()); err != nil {
		return nil, err
	}
	r := &v.report
	slices.SortStableFunc(r.Breaks, func(a, b Break) int { return cmp.Compare(place(a), place(b)) })
	r.OK = len(r.Breaks) == 0
	return r, nil
}

// place orders breaks: those of no segment come last.
func place(b Break) uint64 { return b.Segment - 1 }

func (v *verifier) broken(b Break) { v.report.Breaks = append(v.report.Breaks, b) }

// moved is errMoved if the segments or HEAD are others by now. A list of a
// directory is no picture of one moment: it can lack a segment that was begun
// meanwhile and, with it, the tombstone of one that was removed meanwhile.
func (v *verifier) moved() error {
	if v.final {
		return nil
	}
	list, err := listSegments(v.dir)
	if err != nil {
		return err
	}
	same := func(a, b segmentFile) bool { return a.number == b.number && a.damaged == b.damaged }
	if !slices.EqualFunc(list, v.list, same) {
		return errMoved
	}
	h, err := readHead(v.dir, v.trusted, v.parser)
	if err == nil && h != nil && (v.head == nil || h.Segment != v.head.Segment) {
		return errMoved
	}
	return nil
}

func (v *verifier) readHead() error {
	h, err := readHead(v.dir, v.trusted, v.parser)
	var b *Break
	switch {
	case errors.As(err, &b):
		v.broken(*b)
		v.headBroken = true
	case err != nil:
		return err
	default:
		v.head = h
	}
	return nil
}

// segment checks one segment and that it follows from the one before.
func (v *verifier) segment(f segmentFile, last bool) error {
	s, err := checkSegment(f.path(v.dir), v.parser, segmentCheck{trusted: v.trusted, number: f.number, head: v.head, expect: v.expect})
	var b *Break
	if errors.Is(err, fs.ErrNotExist) {
		return errMoved
	} else if err != nil && !errors.As(err, &b) {
		return err
	}
	r := &v.report
	v.headSeen = v.headSeen || s.headSeen
	v.anchorSeen = v.anchorSeen || s.anchorSeen || s.anchorBad != nil
	if s.anchorBad != nil {
		v.broken(*s.anchorBad)
	}
	r.Segments++
	if h := s.header; h != nil {
		v.follows(h)
		if v.first == nil {
			v.first = h
			r.Node, r.Key, r.LogID = h.Node, s.key.Fingerprint(), fmt.Sprintf("%x", h.LogID)
		}
	}
	if s.records >= 2 {
		v.latest = s.header
	}
	v.count(s)
	if b != nil {
		b.Unsigned = last && !f.damaged && v.headSeen && s.records >= 2
		v.broken(*b)
	} else {
		v.finals[f.number] = s.digest
		if !s.sealed && (!last || f.damaged) {
			v.broken(Break{Segment: f.number, Offset: s.end, Seq: s.last, Reason: ReasonUnsealed, Detail: "it does not end in its final signature, and more segments follow"})
		} else if s.sealed && s.torn > 0 {
			v.broken(Break{Segment: f.number, Offset: s.end, Seq: s.last, Reason: ReasonOrder, Detail: "bytes after the final signature"})
		}
	}
	if v.prev = s; b != nil {
		v.prev = nil
	}
	if last {
		r.Torn, r.Closed = s.torn, s.sealed
		if b != nil {
			r.Torn = 0
		}
	}
	return nil
}

// follows checks a header against the segment before.
func (v *verifier) follows(h *header) {
	bad := func(reason Reason, detail string) {
		v.broken(Break{Segment: h.Segment, Seq: h.First - 1, Reason: reason, Detail: detail})
	}
	if v.first != nil && string(h.LogID) != string(v.first.LogID) {
		bad(ReasonIdentity, "it belongs to another log")
	}
	if v.first != nil && h.Node != v.first.Node {
		bad(ReasonIdentity, "it belongs to the node "+h.Node)
	}
	p := v.prev
	switch {
	case h.Damage:
		bad(ReasonDamaged, fmt.Sprintf("the writer found damage before it and says so in event %d", h.First))
	case p == nil:
	case h.First != p.last+1:
		bad(ReasonSequence, "its first event does not follow the last one before")
	case sealed.Digest(h.Previous) != p.digest || sealed.Digest(h.Signature) != p.sigSum:
		bad(ReasonPrevious, "it does not follow from the end of the segment before")
	}
}

func (v *verifier) count(s *segmentCheck) {
	r := &v.report
	r.Events += s.events
	if s.events > 0 {
		if r.FirstSeq == 0 {
			r.FirstSeq, r.FirstMs = s.last-uint64(s.events)+1, s.firstTime
		}
		r.LastSeq, r.LastMs = s.last, s.lastTime
	}
	if s.signed.Seq != 0 {
		signed := s.signed
		r.Signed = &signed
	}
	r.Unsigned = s.unsigned
}

// begin checks that the log begins at its beginning, or where a tombstone says.
func (v *verifier) begin() error {
	if len(v.list) == 0 || v.latest == nil {
		return nil
	}
	from, tomb := v.list[0].number, v.latest
	v.report.PrunedSegment, v.report.PrunedSeq = tomb.PrunedSegment, tomb.PrunedSeq
	if from > tomb.PrunedSegment+1 {
		v.broken(Break{Segment: 1, Reason: ReasonMissing,
			Detail: fmt.Sprintf("the log begins with segment %d, and retention removed only those up to %d", from, tomb.PrunedSegment)})
		return v.moved()
	}
	f := v.first
	if from == 1 && f != nil && f.Segment == 1 && !f.Damage && (f.First != 1 || !sealed.Digest(f.Previous).IsZero() || !sealed.Digest(f.Signature).IsZero()) {
		v.broken(Break{Segment: 1, Reason: ReasonPrevious, Detail: "the first segment says that something was before it"})
	}
	if tomb.PrunedSegment == 0 {
		return nil
	}
	if d, ok := v.finals[tomb.PrunedSegment]; ok && d != sealed.Digest(tomb.PrunedDigest) {
		v.broken(Break{Segment: tomb.PrunedSegment, Reason: ReasonPrevious, Detail: "the tombstone names another end of this segment"})
	}
	if from == tomb.PrunedSegment+1 && f != nil && f.Segment == from &&
		(sealed.Digest(f.Previous) != sealed.Digest(tomb.PrunedDigest) || f.First != tomb.PrunedSeq+1) {
		v.broken(Break{Segment: from, Reason: ReasonPrevious, Detail: "it does not follow from what the tombstone says was removed"})
	}
	return nil
}

// end checks that the log reaches what HEAD and the anchor say.
func (v *verifier) end() error {
	r := &v.report
	var moved error
	switch {
	case v.headBroken || v.headSeen:
	case v.head != nil:
		moved = v.moved()
		v.broken(Break{Reason: ReasonHead, Detail: fmt.Sprintf("HEAD signs event %d in segment %d, which the log does not hold so: it was cut, or put back", v.head.Seq, v.head.Segment)})
	case r.Segments == 1 && r.Events == 0 && v.latest != nil && v.latest.Segment == 1:
		// A first start that was killed before it wrote HEAD.
	default:
		moved = v.moved()
		v.broken(Break{Reason: ReasonHead, Detail: "the file HEAD is not there"})
	}
	if e := v.expect; e != nil && !v.anchorSeen {
		detail := fmt.Sprintf("the log holds no event %d: it was cut, or put back to an earlier state", e.Seq)
		if e.Seq <= r.PrunedSeq {
			detail = fmt.Sprintf("event %d was removed by retention, which took all up to %d: remember anchors more often", e.Seq, r.PrunedSeq)
		}
		v.broken(Break{Reason: ReasonAnchor, Detail: detail})
	}
	return moved
}

// readHead reads HEAD: nil if there is none, a *Break if it is not one of the
// trusted key's.
func readHead(dir string, trusted sealed.Fingerprint, p *parser) (*head, error) {
	f, err := os.Open(filepath.Join(dir, headName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("anomaly: read HEAD: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("anomaly: read HEAD: %w", err)
	}
	h, err := p.head(b)
	if err != nil {
		return nil, &Break{Reason: ReasonHead, Detail: "the file HEAD: " + err.Error()}
	}
	key := sealed.PublicKey(h.Key)
	if f := key.Fingerprint(); f != trusted {
		return nil, &Break{Reason: ReasonKey, Detail: "HEAD is signed by the key " + f.String()}
	}
	if !sealed.Verify(key, h.Signature, labelHead, h.signed()) {
		return nil, &Break{Reason: ReasonSignature, Detail: "the signature of HEAD does not verify"}
	}
	return h, nil
}
