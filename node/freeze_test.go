package node

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/node/keepalive"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// freezing freezes what is idle at once.
func freezing(w *world) { w.cfg.FreezeAfter = time.Millisecond }

// frosty is a function with one sandbox that is frozen, by id.
func (w *world) frosty(name string, change ...func(*sealed.Descriptor)) (function, string) {
	w.t.Helper()
	f := w.known(name, change...)
	if status, _, body := w.invoke(f); status != 200 {
		w.t.Fatalf("%d %s", status, body)
	}
	id := w.listed(f)[0].ID
	w.eventually("it is frozen", func() bool { return w.fake.Frozen(id) })
	return f, id
}

func TestIdleSandboxIsFrozenAndThawedByTheNextCall(t *testing.T) {
	w := newWorld(t, freezing)
	f, id := w.frosty("f")
	if all := w.listed(f); len(all) != 1 || all[0].State != "frozen" {
		t.Errorf("%+v", all)
	}
	w.eventually("the load counts it as warm", func() bool {
		var l api.NodeLoad
		if err := json.Unmarshal([]byte(w.n.load.Load().json), &l); err != nil {
			t.Fatal(err)
		}
		return l.Warm[api.RevisionKey(f.digest.String())] == w.rev(f).slots && w.fake.Frozen(id)
	})
	if status, h, body := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "warm" {
		t.Errorf("%d %s %s", status, h.Get(api.HeaderStart), body)
	}
	if all := w.listed(f); len(all) != 1 || all[0].ID != id {
		t.Errorf("%+v", all)
	}
}

func TestCallersOfAFrozenSandboxThawItOnce(t *testing.T) {
	w := newWorld(t, freezing)
	f, _ := w.frosty("f")
	before := w.fake.Calls(runtimetest.OpThaw)
	w.n.mu.Lock()
	w.n.cfg.FreezeAfter = time.Hour
	w.n.mu.Unlock()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if status, h, body := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "warm" {
				t.Errorf("%d %s %s", status, h.Get(api.HeaderStart), body)
			}
		})
	}
	wg.Wait()
	if n := w.fake.Calls(runtimetest.OpThaw) - before; n != 1 {
		t.Errorf("thawed %d times", n)
	}
}

func TestSandboxThatDoesNotThawIsReplaced(t *testing.T) {
	w := newWorld(t, freezing)
	f, id := w.frosty("f")
	w.fake.Fail(runtimetest.OpThaw, errors.New("stays frozen"))
	w.fake.Fail(runtimetest.OpThaw, errors.New("stays frozen")) // when it is removed
	var wg sync.WaitGroup
	var cold atomic.Int64
	for range 5 {
		wg.Go(func() {
			status, h, _ := w.invoke(f)
			if status != 200 {
				t.Error(status)
			}
			if h.Get(api.HeaderStart) == "cold" {
				cold.Add(1)
			}
		})
	}
	wg.Wait()
	if cold.Load() == 0 {
		t.Error("no start was told")
	}
	w.eventually("the other one has taken its place", func() bool {
		all := w.listed(f)
		return len(all) == 2 && all[0].ID != id && all[1].ID == id && all[1].State == "dead" &&
			strings.Contains(all[1].LastError, "thawed")
	})
}

func TestSandboxThatDoesNotFreezeServesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, freezing, func(w *world) { w.fake.Fail(runtimetest.OpFreeze, errors.New("no freezer here")) })
	f := w.known("f")
	w.invoke(f)
	w.eventually("it was tried", func() bool { return w.fake.Calls(runtimetest.OpFreeze) == 1 })
	w.eventually("it is ready again", func() bool { return w.listed(f)[0].State == "ready" })
	if status, h, _ := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "warm" {
		t.Errorf("%d %s", status, h.Get(api.HeaderStart))
	}
	time.Sleep(time.Second) // two rounds of the reaper
	if n := w.fake.Calls(runtimetest.OpFreeze); n != 1 {
		t.Errorf("tried %d times", n)
	}
}

func TestFrozenSandboxCanBeStopped(t *testing.T) {
	t.Parallel()
	for what, stop := range map[string]func(w *world, f function){
		"removed":     func(w *world, f function) { w.do("DELETE", api.NodePathFunctions+f.name, nil) },
		"idle for so": func(*world, function) {},
		"in the way": func(w *world, _ function) {
			w.invoke(w.known("big", func(d *sealed.Descriptor) { d.Config.Resources.CPUMillis = 2000 }))
		},
		"dead": func(w *world, f function) { w.fake.Kill(w.listed(f)[0].ID) },
	} {
		w := newWorld(t, freezing)
		f, id := w.frosty("f", func(d *sealed.Descriptor) {
			if what == "idle for so" {
				d.Config.IdleMS = 1500
			}
		})
		stop(w, f)
		w.eventually(what+": it is gone", func() bool {
			for _, s := range w.fake.Sandboxes() {
				if s == id {
					return false
				}
			}
			return true
		})
	}
}

func TestFrozenSandboxIsAdoptedByTheNextLife(t *testing.T) {
	w := newWorld(t, freezing)
	f, id := w.frosty("f")
	w.crash()
	if w.fake.Frozen(id) {
		t.Error("it is frozen, and could not dial")
	}
	if status, h, body := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "warm" {
		t.Errorf("%d %s %s", status, h.Get(api.HeaderStart), body)
	}
}

func TestKeepingFollowsTheOwnerThenThePast(t *testing.T) {
	w := newWorld(t)
	said := w.known("said", func(d *sealed.Descriptor) { d.Config.IdleMS = 7000 })
	learned := w.known("learned")
	w.invoke(said)
	w.invoke(learned)
	past := keepalive.Histogram{}
	for range 20 {
		past.Observe(2 * time.Minute)
	}
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	for _, s := range w.n.fleet {
		if got := w.n.keepFor(s); string(s.rev.name) == learned.name && got != w.n.cfg.IdleAfter {
			t.Errorf("nothing known: %s", got)
		}
		s.rev.habit.past = past
		switch got := w.n.keepFor(s); string(s.rev.name) {
		case said.name:
			if got != 7*time.Second {
				t.Errorf("the owner said 7 s: %s", got)
			}
		case learned.name:
			if got < 2*time.Minute || got > 3*time.Minute {
				t.Errorf("called every two minutes: %s", got)
			}
		}
	}
}

func TestHabitCountsTheTimeWithoutAnyInvocation(t *testing.T) {
	var h habit
	at := time.Unix(1000, 0)
	h.begin(at)
	h.begin(at.Add(time.Second))
	h.end(at.Add(2 * time.Second))
	h.end(at.Add(3 * time.Second))
	for range 20 {
		at = at.Add(time.Minute + 3*time.Second)
		h.begin(at)
		h.end(at.Add(3 * time.Second))
	}
	keep, why := h.past.Decide(keepalive.Policy{Standard: time.Hour, Min: time.Second, Max: time.Hour})
	if why != keepalive.Learned || keep < time.Minute || keep > 90*time.Second {
		t.Errorf("%s, %s", keep, why)
	}
}
