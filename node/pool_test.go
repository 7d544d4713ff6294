package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// pooled keeps least to most boxes ready.
func pooled(least, most int) func(*world) {
	return func(w *world) { w.cfg.PoolMin, w.cfg.PoolMax, w.cfg.PoolCreates = least, most, 2 }
}

// depth is how many boxes wait.
func (w *world) depth() int {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	return len(w.n.pool.idle)
}

func (w *world) filled(n int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d wait in the pool", n), func() bool { return w.depth() == n })
}

// listed are a function's sandboxes as the node lists them, those that run first.
func (w *world) listed(f function) []api.SandboxStatus {
	w.t.Helper()
	_, _, body := w.do("GET", api.NodePathSandboxes+"?function="+f.name, nil)
	var all []api.SandboxStatus
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		w.t.Fatal(err)
	}
	return all
}

func TestStartTakesASandboxThatWaits(t *testing.T) {
	w := newWorld(t, pooled(2, 4))
	w.filled(2)
	f := w.known("f")
	if status, h, body := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "pooled" {
		t.Fatalf("%d %s %s", status, h.Get(api.HeaderStart), body)
	}
	if status, h, _ := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "warm" {
		t.Errorf("%d %s", status, h.Get(api.HeaderStart))
	}
	bound := w.fake.Bound()
	all := w.listed(f)
	if len(bound) != 1 || len(all) != 1 || all[0].ID != bound[0] || all[0].Start != api.StartPooled || all[0].StartWhy != "" {
		t.Errorf("bound %v, listed %+v", bound, all)
	}
	if got := w.fake.Admitted(bound[0]); len(got) != 1 {
		t.Errorf("launchers admitted: %v", got)
	}
	w.filled(2)
	if l := w.n.load.Load(); !strings.Contains(l.json, `"r":1`) {
		t.Errorf("the load counts those that wait as running: %s", l.json)
	}
	w.eventually("the load tells of those that wait", func() bool { return strings.Contains(w.n.load.Load().json, `"p":2`) })
	if n := w.fake.Calls(runtimetest.OpCreate); n != 0 {
		t.Errorf("%d sandboxes were created for a function", n)
	}
}

func TestMissWaitsForTheNextOne(t *testing.T) {
	w := newWorld(t, pooled(0, 4))
	f := w.known("f")
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if status, h, body := w.invoke(f); status != 200 || h.Get(api.HeaderStart) == "pooled" {
				t.Errorf("%d %s %s", status, h.Get(api.HeaderStart), body)
			}
		})
	}
	wg.Wait()
	all := w.listed(f)
	if len(all) != 1 || all[0].Start != api.StartPooled || all[0].StartWhy == "" || w.fake.Calls(runtimetest.OpCreate) != 0 {
		t.Errorf("%+v, %d created", all, w.fake.Calls(runtimetest.OpCreate))
	}
	// It was wanted, so the next one is there before it is asked for.
	w.filled(1)
	if status, h, _ := w.invoke(w.known("g")); status != 200 || h.Get(api.HeaderStart) != "pooled" {
		t.Errorf("%d %s", status, h.Get(api.HeaderStart))
	}
}

func TestImageThatCannotBeBoundStartsPlain(t *testing.T) {
	w := newWorld(t, pooled(1, 1))
	w.filled(1)
	w.fake.RefuseBind(imageDigest, "it is of the wrong shape")
	f := w.known("f")
	if status, h, body := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "cold" {
		t.Fatalf("%d %s %s", status, h.Get(api.HeaderStart), body)
	}
	all := w.listed(f)
	if len(all) != 1 || all[0].Start != api.StartPlain || !strings.Contains(all[0].StartWhy, "wrong shape") {
		t.Errorf("%+v", all)
	}
	if w.depth() != 1 {
		t.Errorf("%d wait", w.depth())
	}
}

func TestWithoutAPoolSandboxesStartPlain(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	w.invoke(f)
	if all := w.listed(f); len(all) != 1 || all[0].Start != api.StartPlain || !strings.Contains(all[0].StartWhy, "turned off") {
		t.Errorf("%+v", all)
	}
	if n := w.fake.Calls(runtimetest.OpBlank); n != 0 {
		t.Errorf("%d were made ahead", n)
	}
}

func TestSandboxThatTakesNoFunctionIsReplacedByAnotherAndThenAPlainOne(t *testing.T) {
	for fails, want := range map[int]string{1: api.StartPooled, 2: api.StartPlain} {
		w := newWorld(t, pooled(3, 3))
		w.filled(3)
		for range fails {
			w.fake.Fail(runtimetest.OpBind, errors.New("no such mount"))
		}
		f := w.known("f")
		if status, _, body := w.invoke(f); status != 200 {
			t.Fatalf("after %d failures: %d %s", fails, status, body)
		}
		if all := w.listed(f); len(all) != 1 || all[0].Start != want {
			t.Errorf("after %d failures: %+v", fails, all)
		}
		w.filled(3)
		if n := len(w.fake.Sandboxes()); n != 4 {
			t.Errorf("after %d failures: %d sandboxes", fails, n)
		}
		if r, n, _ := w.held(); r != n {
			t.Errorf("reserved %+v, needed %+v", r, n)
		}
	}
}

// The agent's connection breaks in the middle of its start; what it missed is
// said again.
func TestAgentThatDialsAgainDuringItsStartComesUp(t *testing.T) {
	for what, is := range map[string]func(api.Control) bool{
		"at its function": func(c api.Control) bool { return c.Bind != nil },
		"at its root":     func(c api.Control) bool { return c.Mounted != nil },
		"at its keys":     func(c api.Control) bool { return c.Keys != nil },
	} {
		for _, size := range []int{0, 1} { // plain, pooled
			var once sync.Once
			w := newWorld(t, pooled(size, size), func(w *world) {
				w.cut = func(c api.Control) (cut bool) {
					if is(c) {
						once.Do(func() { cut = true })
					}
					return cut
				}
			})
			w.filled(size)
			if status, _, body := w.invoke(w.known("f")); status != 200 {
				t.Errorf("%s, pool of %d: %d %s", what, size, status, body)
			}
		}
	}
}

func TestOneThatEndsInThePoolIsReplaced(t *testing.T) {
	w := newWorld(t, pooled(2, 2))
	w.filled(2)
	was := w.fake.Sandboxes()
	w.fake.Kill(was[0])
	w.eventually("there are two again", func() bool {
		now := w.fake.Sandboxes()
		return len(now) == 2 && !slices.Contains(now, was[0]) && w.depth() == 2
	})
}

func TestFailingCreationsPauseAndNobodyWaitsForThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pooled(2, 4), func(w *world) {
		for range 1000 {
			w.fake.Fail(runtimetest.OpBlank, errors.New("no more cgroups"))
		}
	})
	f := w.known("f")
	if status, _, body := w.invoke(f); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if all := w.listed(f); len(all) != 1 || all[0].Start != api.StartPlain || !strings.Contains(all[0].StartWhy, "no more cgroups") {
		t.Errorf("%+v", all)
	}
	time.Sleep(300 * time.Millisecond) // a loop would have used up its thousand
	if n := w.fake.Calls(runtimetest.OpBlank); n > 12 {
		t.Errorf("%d creations were tried", n)
	}
	if r, n, _ := w.held(); r != n {
		t.Errorf("reserved %+v, needed %+v", r, n)
	}
}

func TestMachineThatCannotMakeThemAheadDoesWithout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pooled(2, 4), func(w *world) {
		for range 2 {
			w.fake.Fail(runtimetest.OpBlank, fmt.Errorf("%w: an old kernel", runtime.ErrUnsupported))
		}
	})
	f := w.known("f")
	w.invoke(f)
	if all := w.listed(f); len(all) != 1 || all[0].Start != api.StartPlain || !strings.Contains(all[0].StartWhy, "an old kernel") {
		t.Errorf("%+v", all)
	}
	w.eventually("what was begun has failed", func() bool { w.n.mu.Lock(); defer w.n.mu.Unlock(); return w.n.pool.making == 0 })
	n := w.fake.Calls(runtimetest.OpBlank)
	time.Sleep(2 * poolEvery)
	if now := w.fake.Calls(runtimetest.OpBlank); n > 2 || now != n || w.depth() != 0 {
		t.Errorf("%d creations were tried, then %d; %d wait", n, now, w.depth())
	}
}

func TestReplacedAgentReplacesThoseThatWait(t *testing.T) {
	w := newWorld(t, pooled(2, 2))
	w.filled(2)
	was, measured := w.fake.Sandboxes(), w.measured.Load()
	next := w.cfg.AgentPath + ".new"
	if err := os.WriteFile(next, []byte("another one"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, w.cfg.AgentPath); err != nil {
		t.Fatal(err)
	}
	w.eventually("two others wait", func() bool {
		now := w.fake.Sandboxes()
		return len(now) == 2 && w.depth() == 2 && !slices.Contains(now, was[0]) && !slices.Contains(now, was[1])
	})
	if n := w.measured.Load() - measured; n != 1 {
		t.Errorf("measured %d times", n)
	}
}

func TestThoseThatWaitMakeRoomBeforeIdleSandboxesDo(t *testing.T) {
	w := newWorld(t, pooled(8, 8)) // of 2 GiB: 8 times 48 MiB
	w.filled(8)
	idle := w.known("idle")
	w.invoke(idle)
	w.filled(8)
	// 2048 - 112 - 48 = 1888 are left if all in the pool but the one that is
	// taken make room.
	big := w.known("big", func(d *sealed.Descriptor) { d.Config.Resources.MemoryBytes = 1888 << 20 })
	if status, _, body := w.invoke(big); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if all := w.listed(idle); len(all) != 1 || all[0].State != "ready" {
		t.Errorf("the idle one: %+v", all)
	}
	if w.depth() != 0 {
		t.Errorf("%d wait", w.depth())
	}
	if status, _, _ := w.invoke(w.known("bigger", func(d *sealed.Descriptor) { d.Config.Resources.MemoryBytes = 2001 << 20 })); status != 503 {
		t.Errorf("more than there is: %d", status)
	}
}

// There is room for the function alone: it gets the one box there is, and where
// its image cannot be bound, that box goes first.
func TestLastRoomIsThatOfTheSandboxThatWaits(t *testing.T) {
	for _, unfit := range []string{"", "it is of the wrong shape"} {
		w := newWorld(t, pooled(1, 1))
		w.filled(1)
		w.fake.RefuseBind(imageDigest, unfit)
		f := w.known("f", func(d *sealed.Descriptor) { d.Config.Resources.MemoryBytes = 2000 << 20 })
		want := map[bool]string{true: "pooled", false: "cold"}[unfit == ""]
		if status, h, body := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != want {
			t.Errorf("%d %s %s, want %s", status, h.Get(api.HeaderStart), body, want)
		}
		if r, n, _ := w.held(); r != n || r.Memory != 2048<<20 {
			t.Errorf("reserved %+v, needed %+v", r, n)
		}
		if n := len(w.fake.Sandboxes()); n != 1 {
			t.Errorf("%d sandboxes", n)
		}
	}
}

func TestPoolGivesWayToMemoryPressure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pooled(3, 3))
	w.filled(3)
	w.pressure.Store(&Pressure{Memory: 50})
	w.filled(0)
	f := w.known("f")
	if status, h, body := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "cold" {
		t.Errorf("%d %s %s", status, h.Get(api.HeaderStart), body)
	}
	w.pressure.Store(nil)
	w.filled(3)
}

func TestPoolGrowsWithDemandToItsCeilingAndShrinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pooled(1, 3))
	w.filled(1)
	now := time.Now()
	w.n.mu.Lock()
	for range 10 {
		w.n.pool.demand.note(now)
	}
	w.n.mu.Unlock()
	w.filled(3)
	w.n.mu.Lock()
	w.n.pool.demand = demand{}
	w.n.mu.Unlock()
	w.filled(1)
}

func TestCrashLeavesNoneThatWaits(t *testing.T) {
	w := newWorld(t, pooled(2, 2))
	w.filled(2)
	dir, err := os.MkdirTemp(w.cfg.RunDir, "left")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.fake.CreateBlank(context.Background(), runtime.BlankSpec{ID: "left", AgentPath: w.cfg.AgentPath, SocketDir: dir}); err != nil {
		t.Fatal(err)
	}
	w.crash()
	if slices.Contains(w.fake.Sandboxes(), "left") {
		t.Error("one of an earlier life is there")
	}
	w.filled(2)
}

// told is a runtime that tells of which function a blank becomes a sandbox.
type told struct {
	runtime.Runtime
	of func(api.FunctionName)
}

func (r told) CreateBlank(ctx context.Context, spec runtime.BlankSpec) (runtime.Sandbox, error) {
	s, err := r.Runtime.CreateBlank(ctx, spec)
	return toldSandbox{s, r.of}, err
}

type toldSandbox struct {
	runtime.Sandbox
	of func(api.FunctionName)
}

func (s toldSandbox) Bind(ctx context.Context, spec runtime.Spec) error {
	s.of(spec.Function)
	return s.Sandbox.Bind(ctx, spec)
}

func TestWaitersAreServedInTurnByFunction(t *testing.T) {
	var mu sync.Mutex
	var order []string
	w := newWorld(t, pooled(0, 1), func(w *world) {
		w.cfg.PoolCreates = 1
		w.watched = func(r runtime.Runtime) runtime.Runtime {
			return told{r, func(f api.FunctionName) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, string(f))
			}}
		}
	})
	// Creations stand while the queue fills.
	w.n.mu.Lock()
	w.n.pool.retryAt = time.Now().Add(time.Hour)
	w.n.mu.Unlock()
	greedy := w.known("greedy", func(d *sealed.Descriptor) { d.Config.MaxInFlight, d.Config.Resources.CPUMillis = 1, 100 })
	modest := w.known("modest", func(d *sealed.Descriptor) { d.Config.Resources.CPUMillis = 100 })
	var wg sync.WaitGroup
	waiting := func(n int) {
		w.eventually("they wait", func() bool { w.n.mu.Lock(); defer w.n.mu.Unlock(); return w.n.pool.queue.len() == n })
	}
	for i := range 5 {
		wg.Go(func() { w.invoke(greedy) })
		waiting(i + 1)
	}
	wg.Go(func() { w.invoke(modest) })
	waiting(6)
	w.n.mu.Lock()
	w.n.pool.retryAt = time.Time{}
	w.n.mu.Unlock()
	w.n.kickPool()
	wg.Wait()
	if at := slices.Index(order, "modest.ns"); at < 0 || at > 2 {
		t.Errorf("served in the order %v", order)
	}
}

func TestWaiterThatGivesUpLeavesNothing(t *testing.T) {
	w := newWorld(t, pooled(0, 1), func(w *world) { w.cfg.StartTimeout = 50 * time.Millisecond })
	w.n.mu.Lock()
	w.n.pool.retryAt = time.Now().Add(time.Hour)
	w.n.mu.Unlock()
	f := w.known("f")
	if status, h, body := w.invoke(f); h.Get(api.HeaderRefused) == "" || status/100 == 2 {
		t.Errorf("%d %s", status, body)
	}
	w.eventually("nothing is reserved", func() bool { r, _, _ := w.held(); return r == api.Resources{} })
}

func TestAgentThatEndsAtOnceIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1} { // plain, pooled
		var left atomic.Int64
		w := newWorld(t, pooled(0, size), func(w *world) { w.stillborn = func() bool { return left.Add(-1) >= 0 } })
		f := w.known("f")
		left.Store(3)
		began := time.Now()
		w.invoke(f)
		if took := time.Since(began); took > w.cfg.StartTimeout/2 {
			t.Errorf("pool of %d: answered after %s", size, took)
		}
		left.Store(0)
		w.eventually("the next one starts", func() bool { status, _, _ := w.invoke(f); return status == 200 })
	}
}
