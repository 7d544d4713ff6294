package anomaly

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Open opens the log in cfg.Dir, or makes one. It verifies the last segment
// against its signatures and HEAD. What a killed writer left half written is cut,
// what it left unsigned is adopted, and a Recovered event counts both. Where the
// segment is not what it was signed as, or HEAD names what is not there, nothing
// is cut: the segment is set aside, and a new one begins with a Damaged event. A
// log of another key or node is refused with api.CodeConflict, and so is one that
// another process writes.
func Open(cfg Config) (_ *Log, retErr error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	key, err := sealed.PublicKeyOf(cfg.Signer.Public())
	if err != nil {
		return nil, api.Invalid("Signer", "give an SM2 key", err.Error())
	}
	p, err := newParser()
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	if l.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	w := &writer{log: l, cfg: &l.cfg, key: key, parser: p}
	l.w = w
	defer func() {
		if retErr != nil {
			w.close()
			l.lock.Close()
		}
	}()
	if err := w.resume(); err != nil {
		return nil, err
	}
	l.seq = w.last
	if w.found.kind != 0 {
		l.note(w.found.kind, w.found.code, w.found.numbers)
	}
	// A directory that cannot be written to shows here, and what was found is on
	// the disk before anything else is.
	if err := w.flush(false); err != nil {
		return nil, err
	}
	l.stats.Signed = w.signed
	go l.run()
	return l, nil
}

// finding is what the log says of its own opening.
type finding struct {
	kind    Kind
	code    string
	numbers map[string]int64
}

func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("anomaly: make the log's directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("anomaly: lock the log: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &api.Error{Code: api.CodeConflict, Field: "Dir", Message: "another process writes the anomaly log in " + dir,
			Remedy: "end it, or give each process a directory of its own", Err: err}
	}
	return f, nil
}

// resume finds where the log goes on.
func (w *writer) resume() error {
	list, err := listSegments(w.cfg.Dir)
	if err != nil {
		return err
	}
	h, err := readHead(w.cfg.Dir, w.key.Fingerprint(), w.parser)
	var headBreak *Break
	if err != nil && !errors.As(err, &headBreak) {
		return err
	}
	if headBreak != nil && headBreak.Reason == ReasonKey {
		return otherLog(w.cfg.Dir, headBreak.Detail)
	}
	if len(list) == 0 && h == nil && headBreak == nil {
		w.logID = make([]byte, 16)
		if _, err := io.ReadFull(w.cfg.Random, w.logID); err != nil {
			return fmt.Errorf("anomaly: draw a log id: %w", err)
		}
		return nil
	}
	var lastFile segmentFile
	s := &segmentCheck{}
	var broken *Break
	if len(list) > 0 {
		lastFile = list[len(list)-1]
		if s, broken, err = w.lastSegment(list, h); err != nil {
			return err
		}
	}
	switch {
	case broken != nil:
	case lastFile.damaged:
		broken = &Break{Segment: lastFile.number, Reason: ReasonDamaged}
	case headBreak != nil:
		broken = headBreak
	case h == nil && (s.number != 1 || s.events > 0):
		broken = &Break{Reason: ReasonHead} // only a first start that was killed at once has none
	case h != nil && !s.headSeen:
		broken = &Break{Segment: h.Segment, Reason: ReasonHead}
	}
	w.adopt(s, h)
	if broken != nil {
		return w.setAside(lastFile, s, h, broken)
	}
	return w.continueIn(lastFile, s)
}

// lastSegment checks the last segment, and the one before where HEAD names that:
// a writer may have been killed between a new segment and its HEAD.
func (w *writer) lastSegment(list []segmentFile, h *head) (*segmentCheck, *Break, error) {
	f := list[len(list)-1]
	what := segmentCheck{trusted: w.key.Fingerprint(), number: f.number, head: h}
	s, err := checkSegment(f.path(w.cfg.Dir), w.parser, what)
	var b *Break
	if err != nil && !errors.As(err, &b) {
		return nil, nil, err
	}
	if b != nil && b.Reason == ReasonKey {
		return nil, nil, otherLog(w.cfg.Dir, b.Detail)
	}
	if s.header != nil && s.header.Node != w.cfg.Node {
		return nil, nil, otherLog(w.cfg.Dir, "it belongs to the node "+s.header.Node)
	}
	if b == nil && s.sealed && s.torn > 0 {
		b = &Break{Segment: f.number, Offset: s.end, Reason: ReasonOrder}
	}
	if b == nil && h != nil && h.Segment+1 == f.number && s.events == 0 && len(list) > 1 && list[len(list)-2].number == h.Segment {
		what.number = h.Segment
		before, err := checkSegment(list[len(list)-2].path(w.cfg.Dir), w.parser, what)
		if err != nil && !errors.As(err, &b) {
			return nil, nil, err
		}
		b = nil // of an older segment: for Verify to tell
		s.headSeen = before.headSeen
	}
	return s, b, nil
}

func otherLog(dir, detail string) error {
	return &api.Error{Code: api.CodeConflict, Field: "Dir", Message: "the anomaly log in " + dir + " is not this writer's: " + detail,
		Remedy: "give this one another directory, and keep the old one for as long as it may be asked for"}
}

// adopt takes over numbers and identity from what is there.
func (w *writer) adopt(s *segmentCheck, h *head) {
	w.number, w.last, w.end, w.sigSum = s.number, s.last, s.digest, s.sigSum
	if s.header != nil {
		w.logID = s.header.LogID
		w.tomb = tombstone{segment: s.header.PrunedSegment, seq: s.header.PrunedSeq, digest: sealed.Digest(s.header.PrunedDigest)}
	}
	if h != nil {
		w.logID = h.LogID
		// No number is given twice, whatever was lost.
		w.number, w.last = max(w.number, h.Segment), max(w.last, h.Seq)
	}
	if s.last == w.last {
		w.afterLast = Anchor{Seq: s.last, Digest: s.afterLast}
		if s.events == 0 {
			w.afterLast = Anchor{}
		}
	}
	w.signed = s.signed
	w.reach = s.signed
}

// setAside keeps a damaged segment as it is, under another name, and has the log
// go on in a new one.
func (w *writer) setAside(f segmentFile, s *segmentCheck, h *head, b *Break) error {
	whole := s.sealed && b.Segment != f.number // it ended in order; what is wrong comes after it
	if f.number != 0 && !f.damaged && !whole {
		to := f
		to.damaged = true
		if err := os.Rename(f.path(w.cfg.Dir), to.path(w.cfg.Dir)); err != nil {
			return fmt.Errorf("anomaly: set a damaged segment aside: %w", err)
		}
		if err := syncDir(w.cfg.Dir); err != nil {
			return fmt.Errorf("anomaly: set a damaged segment aside: %w", err)
		}
	}
	w.number = max(w.number, f.number)
	if w.logID == nil {
		w.logID = make([]byte, 16)
		if _, err := io.ReadFull(w.cfg.Random, w.logID); err != nil {
			return fmt.Errorf("anomaly: draw a log id: %w", err)
		}
	}
	w.damage = true
	numbers := map[string]int64{"segment": int64(b.Segment), "offset": b.Offset, "sequence": int64(s.last)}
	if h != nil {
		numbers["head_sequence"] = int64(h.Seq)
	}
	w.found = finding{kind: Damaged, code: string(b.Reason), numbers: numbers}
	return nil
}

// continueIn goes on in the last segment, or after it where it was ended.
func (w *writer) continueIn(f segmentFile, s *segmentCheck) error {
	if s.sealed {
		return nil
	}
	file, err := os.OpenFile(f.path(w.cfg.Dir), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("anomaly: open the last segment: %w", err)
	}
	if s.torn > 0 {
		if err := errors.Join(file.Truncate(s.end), file.Sync()); err != nil {
			file.Close()
			return fmt.Errorf("anomaly: cut what was half written: %w", err)
		}
	}
	now := time.Now()
	w.seg = &openSegment{f: file, size: s.end, chain: newChain(), events: s.events, since: now, unsigned: s.unsigned, oldest: now}
	w.seg.chain.cur = s.digest
	// HEAD names this segment before the next event is in it: a HEAD that names the
	// one before is taken only where this one has no event.
	w.head = &head{LogID: w.logID, Key: w.key[:], Segment: s.number, Seq: s.cpSeq, TimeMs: uint64(max(0, w.cfg.Now().UnixMilli())), Digest: s.cpAfter[:]}
	w.found = finding{kind: Recovered, numbers: map[string]int64{"bytes": s.torn, "unsigned": int64(s.unsigned)}}
	return nil
}
