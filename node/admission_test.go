package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func drawResources(t *rapid.T, most int64) api.Resources {
	draw := rapid.Int64Range(0, most)
	return api.Resources{CPU: draw.Draw(t, "cpu"), Memory: draw.Draw(t, "memory"), PIDs: draw.Draw(t, "pids")}
}

func TestLedgerNeverReservesMoreThanThereIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := ledger{capacity: drawResources(t, 100)}
		var held []api.Resources
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "give back") {
				l.release(held[len(held)-1])
				held = held[:len(held)-1]
			} else if r := drawResources(t, 40); l.reserve(r) == "" {
				held = append(held, r)
			} else if r.Lacks(l.capacity.Sub(l.reserved)) == "" {
				t.Fatal("refused what fits")
			}
			var sum api.Resources
			for _, r := range held {
				sum = sum.Add(r)
			}
			if sum != l.reserved {
				t.Fatalf("reserved %+v, held %+v", l.reserved, sum)
			}
			if lacks := l.reserved.Lacks(l.capacity); lacks != "" {
				t.Fatalf("over-committed in %s", lacks)
			}
		}
		for _, r := range held {
			l.release(r)
		}
		if l.reserved != (api.Resources{}) {
			t.Fatalf("left over: %+v", l.reserved)
		}
	})
}

func TestForcedReservationsLeaveNothingFree(t *testing.T) {
	l := ledger{capacity: api.Resources{CPU: 10, Memory: 10, PIDs: 10}}
	l.force(api.Resources{CPU: 30, Memory: 5, PIDs: 5})
	if f := l.free(); f != (api.Resources{CPU: 0, Memory: 5, PIDs: 5}) {
		t.Errorf("free %+v", f)
	}
	if l.reserve(api.Resources{CPU: 1}) != "cpu" {
		t.Error("reserved beyond an over-committed resource")
	}
}

// Many ask at once for sandboxes of many sizes, on a node that has room for a
// few. At no moment is more reserved than there is, or anything but what its
// sandboxes need; no sandbox ever has more invocations than slots.
func TestConcurrentAdmissionNeverOverCommits(t *testing.T) {
	w := newWorld(t)
	var fns []function
	for i, size := range []uint64{100, 300, 500, 700, 1100, 1900} {
		fns = append(fns, w.known(fmt.Sprintf("f%d", i), func(d *sealed.Descriptor) {
			d.Config.Resources.CPUMillis, d.Config.MaxInFlight = size, uint64(1+i%3)
		}))
	}
	check := func() error {
		w.n.mu.Lock()
		defer w.n.mu.Unlock()
		sum := w.n.pool.held
		for _, s := range w.n.fleet {
			sum = sum.Add(s.holds)
			if s.inFlight > s.rev.slots || s.inFlight < 0 {
				return fmt.Errorf("%d in flight in a sandbox of %d slots", s.inFlight, s.rev.slots)
			}
		}
		if sum != w.n.ledger.reserved {
			return fmt.Errorf("reserved %+v, needed %+v", w.n.ledger.reserved, sum)
		}
		if lacks := w.n.ledger.reserved.Lacks(w.n.ledger.capacity); lacks != "" {
			return fmt.Errorf("over-committed in %s", lacks)
		}
		return nil
	}
	stop := make(chan struct{})
	var watch, wg sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := check(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	served := make([]int, 8)
	for worker := range served {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 7)) // seeded: a failure can be met again
			for range 40 {
				f := fns[r.IntN(len(fns))]
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+r.IntN(200))*time.Millisecond)
				sl, err := w.n.acquire(ctx, w.rev(f), asker{})
				cancel()
				if err != nil {
					switch api.CodeOf(err) {
					case api.CodeNoRoom, api.CodeBusy, api.CodeDeadline, api.CodeStartFailed:
					default:
						t.Errorf("refused with %v", err)
					}
					continue
				}
				served[worker]++
				time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
				sl.release()
			}
		})
	}
	wg.Wait()
	close(stop)
	watch.Wait()
	total := 0
	for _, n := range served {
		total += n
	}
	if total == 0 {
		t.Error("nobody was served")
	}
	t.Logf("%d of %d were served", total, 8*40)
	w.n.removeAll()
	w.eventually("nothing is reserved", func() bool { r, _, _ := w.held(); return r == api.Resources{} })
}

func TestRevisionIsReplacedByALaterSequenceOnly(t *testing.T) {
	w := newWorld(t)
	first, third, second := w.deploy("f", 1), w.deploy("f", 3), w.deploy("f", 2)
	for _, f := range []function{first, third, second} {
		w.tell(f)
	}
	if r := w.rev(first); r.seq != 3 {
		t.Errorf("sequence %d", r.seq)
	}
	again, err := openRevisions(filepath.Join(w.cfg.StateDir, "revisions"), w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := again.get(first.digest.String()); !ok || r.seq != 3 {
		t.Errorf("after a restart: %v %+v", ok, r)
	}
}

func TestFormerRevisionsOfAFunctionAreForgotten(t *testing.T) {
	w := newWorld(t)
	old := w.deploy("f", 1)
	next := w.deploy("f", 2, func(d *sealed.Descriptor) { d.Config.ExecMS = 5000 })
	other := w.deploy("g", 1)
	for _, f := range []function{old, other, next} {
		w.tell(f)
	}
	for f, want := range map[*function]bool{&old: false, &next: true, &other: true} {
		if _, ok := w.n.revs.get(f.digest.String()); ok != want {
			t.Errorf("%s of sequence %d: known %t, want %t", f.name, f.seq, ok, want)
		}
	}
	files, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "revisions"))
	if err != nil || len(files) != 2 {
		t.Errorf("%d files, %v", len(files), err)
	}
}

func TestWhatANodeIsToldIsChecked(t *testing.T) {
	w := newWorld(t)
	f := w.deploy("f", 1)
	unlimited := w.deploy("u", 1, func(d *sealed.Descriptor) { d.Config.Resources.MemoryBytes, d.Config.Resources.TmpBytes = 0, 0 })
	bent := append([]byte(nil), f.rec.Descriptor...)
	bent[len(bent)-1] ^= 1
	for what, c := range map[string]struct {
		digest string
		rec    api.Revision
	}{
		"other digest":     {unlimited.digest.String(), f.rec},
		"no digest":        {"abc", f.rec},
		"way out":          {"..%2f..%2fx", f.rec},
		"no descriptor":    {f.digest.String(), api.Revision{}},
		"signature broken": {f.digest.String(), api.Revision{Descriptor: bent}},
		"no memory limit":  {unlimited.digest.String(), unlimited.rec},
	} {
		if _, err := w.n.revs.put(c.digest, c.rec); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	for _, name := range []string{f.digest.String() + revisionSuffix, newPrefix + "1"} {
		if err := os.WriteFile(filepath.Join(w.cfg.StateDir, "revisions", name), []byte("{cut"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openRevisions(filepath.Join(w.cfg.StateDir, "revisions"), w.cfg); err != nil {
		t.Errorf("a file that a crash cut stops the daemon: %v", err)
	}
}

func TestReplaySetOutlivesItsFunctionUntilAllHasExpired(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	seen := w.rev(f).seen
	for _, again := range []struct {
		after time.Duration
		same  bool
	}{{replayAfter / 2, true}, {2 * replayAfter, false}} {
		if err := w.n.revs.drop("f.ns", ""); err != nil {
			t.Fatal(err)
		}
		w.n.revs.mu.Lock()
		w.n.revs.replay["f.ns"].used = time.Now().Add(-again.after)
		w.n.revs.mu.Unlock()
		w.known("g")
		w.tell(w.deploy("h", uint64(again.after))) // told anew: old sets are looked through
		w.tell(f)
		if same := w.rev(f).seen == seen; same != again.same {
			t.Errorf("after %s: the same set %v, want %v", again.after, same, again.same)
		}
	}
	w.n.revs.mu.RLock()
	defer w.n.revs.mu.RUnlock()
	if n := len(w.n.revs.replay); n != 3 {
		t.Errorf("%d sets for three functions", n)
	}
}

func TestLogbookIsBounded(t *testing.T) {
	l, rev := newLogbook("n", 4<<10), &revision{name: "f.ns"}
	for range 10000 {
		l.add(rev, "s", &api.Log{}) // of no bytes: they cost memory all the same
		l.add(rev, "s", &api.Log{Sealed: make([]byte, 100)})
	}
	frames, _ := l.after("f.ns", 0)
	if len(frames) > 40 {
		t.Errorf("%d frames are kept", len(frames))
	}
	last := frames[len(frames)-1].Seq
	if more, _ := l.after("f.ns", last); len(more) != 0 {
		t.Errorf("%d frames after the last", len(more))
	}
	_, news := l.after("f.ns", last)
	l.add(rev, "s", &api.Log{Sealed: []byte("x")})
	select {
	case <-news:
	default:
		t.Error("readers are not told")
	}
}

func TestFloodOfMessagesToOneFunctionCostsTheOthersNothing(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.ReplayTotal = 20 })
	f, g := w.known("f"), w.known("g")
	for _, fn := range []function{f, g} {
		if status, _, body := w.invoke(fn); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	expires := uint64(time.Now().Add(5 * time.Second).UnixMilli())
	for i := range 25 {
		if err := w.rev(f).seen.Add(f.digest, sealed.ID{byte(i)}, expires); err != nil {
			t.Fatal(err)
		}
	}
	w.n.revs.weigh()
	if status, h, _ := w.invoke(f); status != 429 || h.Get(api.HeaderRefused) != string(api.CodeBusy) {
		t.Errorf("the flooded one: %d %q", status, h.Get(api.HeaderRefused))
	}
	if status, _, body := w.do("POST", api.NodePathAdmit+f.target(), nil); status != 429 {
		t.Errorf("a ticket for it: %d %s", status, body)
	}
	if status, _, body := w.invoke(g); status != 200 {
		t.Errorf("another one: %d %s", status, body)
	}
	w.eventually("it is served once they have expired", func() bool { status, _, _ := w.invoke(f); return status == 200 })
}
