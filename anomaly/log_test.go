package anomaly_test

import (
	"context"
	"crypto"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEventsComeBackAsTheyWere(t *testing.T) {
	r := newRig(t)
	want := sample(7)
	r.log.Append(want)
	r.log.Append(anomaly.Event{Kind: anomaly.HeartbeatMissed, Node: "node-2", Code: "dead"})
	r.close()
	got := r.events(r.cfg.Dir)
	if len(got) != 2 || got[1].Node != "node-2" || got[0].Node != "node-1" || got[0].Seq != 1 || got[0].TimeMs == 0 || got[0].BootMs == 0 {
		t.Fatalf("%+v", got)
	}
	e := got[0]
	if e.Function != want.Function || e.Revision != want.Revision || e.Sandbox != want.Sandbox || e.Code != want.Code || e.Numbers["value"] != 7 || e.Numbers["duration_ms"] != -1 {
		t.Fatalf("%+v", e)
	}
	if rep := r.verified(r.cfg.Dir); !rep.Closed || rep.Unsigned != 0 || rep.Signed.Seq != 2 {
		t.Fatalf("%+v", rep)
	}
}

func TestNothingOfAPayloadPasses(t *testing.T) {
	for name, change := range map[string]func(e *anomaly.Event){
		"kind":              func(e *anomaly.Event) { e.Kind = 999 },
		"kind of the log":   func(e *anomaly.Event) { e.Kind = anomaly.Pruned },
		"node":              func(e *anomaly.Event) { e.Node = "a b" },
		"function":          func(e *anomaly.Event) { e.Function = "secret text" },
		"function, undoted": func(e *anomaly.Event) { e.Function = "hello" },
		"sandbox":           func(e *anomaly.Event) { e.Sandbox = "x\n" },
		"long sandbox":      func(e *anomaly.Event) { e.Sandbox = string(make([]byte, 65)) },
		"code":              func(e *anomaly.Event) { e.Code = "hunter2" },
		"code of others":    func(e *anomaly.Event) { e.Code = "dead" },
		"number's name": func(e *anomaly.Event) {
			e.Numbers = map[string]int64{"threshold": 1, "value": 1, "duration_ms": 1, "hunter": 2}
		},
		"number missing": func(e *anomaly.Event) { e.Numbers = map[string]int64{"threshold": 1} },
	} {
		e := sample(1)
		change(&e)
		err := e.Validate()
		var ae *api.Error
		if !errors.As(err, &ae) || ae.Code != api.CodeInvalid || ae.Field == "" || ae.Remedy == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	e := sample(1)
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	e.Code = "hunter2"
	r.log.Append(e)
	r.log.Append(e)
	r.close()
	got := r.events(r.cfg.Dir)
	var n int64
	for _, e := range got {
		if e.Kind != anomaly.Invalid || e.Code != "code" || e.Numbers["kind"] != int64(anomaly.OverThreshold) {
			t.Fatalf("%+v", e)
		}
		n += e.Numbers["count"]
	}
	if n != 2 || r.log.Stats().Invalid != 2 {
		t.Fatalf("%+v, %+v", got, r.log.Stats())
	}
}

func TestConcurrentAppendsAreAllThereInOrder(t *testing.T) {
	r := newRig(t, func(c *anomaly.Config) {
		c.SegmentBytes, c.FlushEvery, c.CheckpointEvents = 64<<10, time.Millisecond, 64
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				r.log.Append(sample(i))
				r.log.Stats()
			}
		})
	}
	wg.Wait()
	r.close()
	rep := r.verified(r.cfg.Dir)
	st := r.log.Stats()
	if st.Appended+st.Lost != 1600 || uint64(rep.Events) < st.Appended || rep.Events > int(st.Appended)+50 || rep.LastSeq != uint64(rep.Events) {
		t.Fatalf("%+v, %+v", rep, st)
	}
	r.log.Append(sample(1))
	if r.log.Stats().Lost != st.Lost+1 {
		t.Error("an event after the end was not counted")
	}
}

func TestCheckpointComesByAge(t *testing.T) {
	r := newRig(t, func(c *anomaly.Config) { c.CheckpointEvents, c.CheckpointAge = 1000, 20*time.Millisecond })
	r.log.Append(sample(1))
	r.until("a signature", func() bool { return r.log.Stats().Signed.Seq == 1 })
	if rep := r.verified(r.cfg.Dir); rep.Unsigned != 0 {
		t.Fatalf("%+v", rep)
	}
}

func TestSegmentEndsByAge(t *testing.T) {
	r := newRig(t, func(c *anomaly.Config) { c.SegmentAge = 20 * time.Millisecond })
	r.log.Append(sample(1))
	r.until("a second segment", func() bool { return len(readFiles(t, r.cfg.Dir).segments()) == 2 })
	r.verified(r.cfg.Dir)
}

func TestRetentionLeavesATombstone(t *testing.T) {
	r := newRig(t, func(c *anomaly.Config) { c.MaxBytes = 3 * c.SegmentBytes })
	early := func() *anomaly.Anchor { r.fill(3); return r.verified(r.cfg.Dir).Signed }()
	for range 200 {
		if r.verified(r.cfg.Dir).PrunedSegment >= 3 {
			break
		}
		r.fill(1)
	}
	r.close()
	rep := r.verified(r.cfg.Dir)
	fs := readFiles(t, r.cfg.Dir)
	if rep.PrunedSegment < 3 || rep.FirstSeq != rep.PrunedSeq+1 || len(fs.segments()) > 4 {
		t.Fatalf("%+v, %v", rep, fs.segments())
	}
	told := false
	for _, e := range r.events(r.cfg.Dir) {
		told = told || e.Kind == anomaly.Pruned && e.Numbers["segment"] == int64(rep.PrunedSegment)
	}
	if !told {
		t.Error("no event says what was removed")
	}
	if rep := r.verify(r.cfg.Dir, early); rep.OK || rep.Breaks[0].Reason != anomaly.ReasonAnchor {
		t.Fatalf("%+v", rep)
	}
	j := &judge{r: r, dir: t.TempDir()}
	if rep := j.verify(t, fs.with(fs.segments()[0], nil), nil); rep.OK || rep.Breaks[0].Reason != anomaly.ReasonMissing {
		t.Fatalf("one segment more than the tombstone says: %+v", rep)
	}
	r.reopen()
	r.log.Append(sample(1))
	r.close()
	r.verified(r.cfg.Dir)
}

// The directory is away for a while: as on a full disk, HEAD cannot be written.
func TestFailingDiskCostsCountedEventsAndNoMore(t *testing.T) {
	r := newRig(t, func(c *anomaly.Config) { c.QueueBytes = 8 << 10 })
	r.fill(1)
	away := r.cfg.Dir + ".away"
	if err := os.Rename(r.cfg.Dir, away); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for i := range 200 {
		r.log.Append(sample(i))
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("Append waited %s", d)
	}
	r.until("a failure", func() bool { return r.log.Stats().Err != nil })
	for i := range 200 {
		r.log.Append(sample(i))
	}
	if err := os.Rename(away, r.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	r.until("success", func() bool { return r.log.Stats().Err == nil })
	r.close()
	r.verified(r.cfg.Dir)
	st := r.log.Stats()
	var lost uint64
	for _, e := range r.events(r.cfg.Dir) {
		if e.Kind == anomaly.Lost {
			lost += uint64(e.Numbers["count"])
		}
	}
	if st.Lost == 0 || lost != st.Lost || st.Failures == 0 || st.Appended+st.Lost != 401 {
		t.Fatalf("%+v, the log says %d lost", st, lost)
	}
}

type flakySigner struct {
	crypto.Signer
	broken atomic.Bool
}

func (s *flakySigner) Sign(random io.Reader, e []byte, o crypto.SignerOpts) ([]byte, error) {
	if s.broken.Load() {
		return nil, errors.New("the key is busy")
	}
	return s.Signer.Sign(random, e, o)
}

func TestFailingSignerIsAskedAgain(t *testing.T) {
	var s *flakySigner
	r := newRig(t, func(c *anomaly.Config) { s = &flakySigner{Signer: c.Signer}; c.Signer = s })
	s.broken.Store(true)
	for i := range 10 {
		r.log.Append(sample(i))
	}
	r.until("a failure", func() bool { return r.log.Stats().Err != nil })
	s.broken.Store(false)
	r.until("success", func() bool { return r.log.Stats().Err == nil })
	r.close()
	if rep := r.verified(r.cfg.Dir); rep.Events != 10 {
		t.Fatalf("%+v", rep)
	}
}

func TestOneWriterOneKeyOneNode(t *testing.T) {
	r := newRig(t)
	conflict := func(what string, change func(c *anomaly.Config)) {
		t.Helper()
		cfg := r.cfg
		change(&cfg)
		if l, err := anomaly.Open(cfg); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("%s: %v, %v", what, l, err)
		}
	}
	conflict("two writers", func(*anomaly.Config) {})
	r.close()
	k, _ := newKey(t)
	conflict("another key", func(c *anomaly.Config) { c.Signer = k })
	conflict("another node", func(c *anomaly.Config) { c.Node = "node-2" })
	cfg := r.cfg
	cfg.Node = "Not A Name"
	if _, err := anomaly.Open(cfg); api.CodeOf(err) != api.CodeInvalid {
		t.Error(err)
	}
	r.reopen()
}

func TestFollowSeesWhatComes(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got := make(chan anomaly.Event)
	go func() {
		defer close(got)
		for e, err := range anomaly.Follow(ctx, r.cfg.Dir, anomaly.Filter{Kinds: []anomaly.Kind{anomaly.OverThreshold}}, 0) {
			if err != nil {
				return
			}
			got <- e
		}
	}()
	for i := range 20 { // across segments
		r.log.Append(sample(i))
		if e, ok := <-got; !ok || e.Seq != uint64(i+1) {
			t.Fatalf("%+v, want event %d", e, i+1)
		}
	}
	cancel()
	for range got {
	}
}

func TestOpenKeyKeepsItsKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys", "anomaly.key")
	a, err := anomaly.OpenKey(path, newRandom())
	if err != nil {
		t.Fatal(err)
	}
	b, err := anomaly.OpenKey(path, newRandom())
	if err != nil || !a.(interface{ Equal(crypto.PrivateKey) bool }).Equal(b) {
		t.Fatalf("another key, %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := anomaly.OpenKey(path, newRandom()); api.CodeOf(err) != api.CodeInvalid {
		t.Fatalf("a key that others can read: %v", err)
	}
}
