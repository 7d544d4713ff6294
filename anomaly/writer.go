package anomaly

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// retryAfter is how long a failed write waits before it is tried again.
const retryAfter = time.Second

// writer is the half of a Log that its goroutine has for itself. Each step of
// flush leaves it in a state from which the next flush goes on, so that a full
// disk costs time and never the log.
type writer struct {
	log    *Log
	cfg    *Config
	key    sealed.PublicKey
	logID  []byte
	parser *parser

	raw  []byte // queued records that are not chained yet
	next int    // how many bytes of raw are
	out  []byte // chained records that are not on the disk

	seg    *openSegment  // nil between two segments
	number uint64        // of the last segment
	last   uint64        // number of the last event in the chain
	end    sealed.Digest // last digest of the last segment, when it has ended
	sigSum sealed.Digest // SM3 of the last signature
	damage bool          // what comes before the next segment is damaged
	tomb   tombstone

	afterLast Anchor // last event in the chain
	reach     Anchor // last event under a signature, perhaps not on the disk
	signed    Anchor // and on the disk
	head      *head  // to be written when out is on the disk

	found finding // by resume

	lastFlush time.Time
	failed    bool // the last flush
}

// openSegment is the segment being written.
type openSegment struct {
	f        *os.File
	size     int64 // on the disk
	chain    chain
	events   int
	since    time.Time // of its start, by the process' clock
	unsigned int       // events after the last signature
	oldest   time.Time // when the first of these was chained
	final    bool      // its last signature is made
}

// tombstone is what retention removed.
type tombstone struct {
	segment, seq uint64
	digest       sealed.Digest
}

// due is when the writer has something to do next.
func (w *writer) due(now time.Time) time.Time {
	gap := w.cfg.FlushEvery
	if w.failed {
		gap = retryAfter
	}
	soonest := w.lastFlush.Add(gap)
	due := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.Before(soonest) {
			t = soonest
		}
		if t.Before(due) {
			due = t
		}
	}
	bytes, any := w.log.queued()
	if any || w.next < len(w.raw) || len(w.out) > 0 || w.head != nil || w.seg == nil {
		sooner(now)
	}
	if !w.failed && bytes >= w.cfg.QueueBytes/2 {
		due = now // the queue would run over before the next write were due
	}
	if s := w.seg; s != nil {
		if s.unsigned > 0 {
			sooner(s.oldest.Add(w.cfg.CheckpointAge))
		}
		if s.events > 0 {
			sooner(s.since.Add(w.cfg.SegmentAge))
		}
	}
	return due
}

func (w *writer) flushed(now time.Time, err error) { w.lastFlush, w.failed = now, err != nil }

// flush brings all that is queued to the disk. With last it ends the segment too.
func (w *writer) flush(last bool) error {
	for {
		if err := w.commit(); err != nil {
			return err
		}
		if w.next == len(w.raw) {
			w.raw, w.next = w.log.take(w.raw), 0
		}
		idle := len(w.raw) == 0
		s := w.seg
		switch {
		case s != nil && s.final:
			s.f.Close() // every byte was fsynced
			w.seg = nil
			if idle && last {
				return nil
			}
		case s == nil:
			if idle && last {
				return nil
			}
			if err := w.begin(); err != nil {
				return err
			}
		case idle && last, s.events > 0 && (s.size >= w.cfg.SegmentBytes || time.Since(s.since) >= w.cfg.SegmentAge):
			if err := w.sign(true); err != nil {
				return err
			}
		case idle:
			if s.unsigned > 0 && time.Since(s.oldest) >= w.cfg.CheckpointAge {
				if err := w.sign(false); err != nil {
					return err
				}
				return w.commit()
			}
			return nil
		default:
			if err := w.chain(); err != nil {
				return err
			}
		}
	}
}

// chain moves queued records into the chain, until none is left or the segment
// is full.
func (w *writer) chain() error {
	s := w.seg
	for w.next < len(w.raw) && s.size+int64(len(w.out)) < w.cfg.SegmentBytes {
		if s.unsigned >= w.cfg.CheckpointEvents {
			if err := w.sign(false); err != nil {
				return err
			}
		}
		n := recordLen(w.raw[w.next:])
		start := len(w.out)
		w.out = s.chain.seal(append(w.out, w.raw[w.next:w.next+n]...), start)
		w.next += n
		w.last++
		w.afterLast = Anchor{Seq: w.last, Digest: s.chain.cur}
		if s.unsigned == 0 {
			s.oldest = time.Now()
		}
		s.unsigned++
		s.events++
	}
	if s.unsigned >= w.cfg.CheckpointEvents {
		return w.sign(false)
	}
	return nil
}

// sign appends a checkpoint to out.
func (w *writer) sign(final bool) error {
	s := w.seg
	b, sig, h, err := w.checkpoint(w.out, &s.chain, w.number, w.last, final)
	if err != nil {
		return err
	}
	w.out, w.head, w.sigSum = b, h, sig
	w.reach = w.afterLast
	s.unsigned, s.final = 0, final
	if final {
		w.end = s.chain.cur
	}
	return nil
}

// checkpoint appends a signed checkpoint to b and moves the chain. It returns the
// signature's digest, and the HEAD that names the checkpoint.
func (w *writer) checkpoint(b []byte, c *chain, segment, seq uint64, final bool) ([]byte, sealed.Digest, *head, error) {
	now := uint64(max(0, w.cfg.Now().UnixMilli()))
	before := c.cur
	cp := checkpoint{Final: final, Seq: seq, TimeMs: now, Digest: before[:]}
	var err error
	if cp.Signature, _, err = sealed.Sign(w.cfg.Random, w.cfg.Signer, labelCheckpoint, cp.signed(w.logID, segment)); err != nil {
		return b, sealed.Digest{}, nil, fmt.Errorf("anomaly: sign a checkpoint: %w", err)
	}
	start := len(b)
	b = c.seal(cp.append(append(b, 0, 0, 0, 0)), start)
	after := c.cur
	return b, sum(cp.Signature), &head{LogID: w.logID, Key: w.key[:], Segment: segment, Seq: seq, TimeMs: now, Digest: after[:]}, nil
}

// commit brings out to the disk, and then HEAD, which must never be ahead.
func (w *writer) commit() error {
	if len(w.out) > 0 {
		// After a failure the same bytes go to the same place once more.
		if _, err := w.seg.f.WriteAt(w.out, w.seg.size); err != nil {
			return fmt.Errorf("anomaly: write: %w", err)
		}
		if err := w.seg.f.Sync(); err != nil {
			return fmt.Errorf("anomaly: write: %w", err)
		}
		w.seg.size += int64(len(w.out))
		w.out = w.out[:0]
	}
	if w.head == nil {
		return nil
	}
	h := w.head
	if h.Signature == nil {
		var err error
		if h.Signature, _, err = sealed.Sign(w.cfg.Random, w.cfg.Signer, labelHead, h.signed()); err != nil {
			return fmt.Errorf("anomaly: sign HEAD: %w", err)
		}
	}
	if err := replaceFile(filepath.Join(w.cfg.Dir, headName), h.append(nil), 0o600); err != nil {
		return fmt.Errorf("anomaly: write HEAD: %w", err)
	}
	w.head, w.signed = nil, w.reach
	return nil
}

// begin starts the next segment. Its file appears whole, with its header and the
// signature on that; then retention removes what its header says is removed.
func (w *writer) begin() error {
	number := w.number + 1
	tomb, err := w.retention()
	if err != nil {
		return err
	}
	h := header{Version: formatVersion, LogID: w.logID, Segment: number, Node: w.cfg.Node, Key: w.key[:],
		Previous: w.end[:], Signature: w.sigSum[:], First: w.last + 1, TimeMs: uint64(max(0, w.cfg.Now().UnixMilli())), BootMs: uint64(max(0, w.cfg.Boot())),
		Damage: w.damage, PrunedSegment: tomb.segment, PrunedSeq: tomb.seq, PrunedDigest: tomb.digest[:]}
	s := &openSegment{chain: newChain(), since: time.Now()}
	b := s.chain.seal(h.append(make([]byte, 4, 2*maxBody)), 0)
	b, sig, hd, err := w.checkpoint(b, &s.chain, number, w.last, false)
	if err != nil {
		return err
	}
	if s.f, err = createSegment(segmentFile{number: number}.path(w.cfg.Dir), b); err != nil {
		return fmt.Errorf("anomaly: begin a segment: %w", err)
	}
	s.size = int64(len(b))
	w.seg, w.number, w.sigSum, w.head, w.damage = s, number, sig, hd, false
	w.reach = w.afterLast
	if err := w.commit(); err != nil {
		return err
	}
	return w.prune(tomb)
}

func createSegment(path string, b []byte) (_ *os.File, retErr error) {
	f, err := createTemp(path, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			f.Close()
		}
	}()
	if _, err := f.Write(b); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(path+tempSuffix, path); err != nil {
		return nil, err
	}
	return f, syncDir(filepath.Dir(path))
}

func (w *writer) close() {
	if w.seg != nil {
		w.seg.f.Close() // what was to be kept was fsynced, or the failure told
	}
}
