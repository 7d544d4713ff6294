package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
)

const helper = "CGROUPS_TEST_HELPER"

// TestMain lets the test binary be the process that is limited.
func TestMain(m *testing.M) {
	switch os.Getenv(helper) {
	case "":
		goleak.VerifyTestMain(m)
	case "hog":
		awaitLine()
		var keep [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
			_ = keep
		}
	case "fork":
		awaitLine()
		for {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), helper+"=sleep")
			if err := cmd.Start(); err != nil {
				fmt.Println("refused")
				time.Sleep(time.Hour)
			}
		}
	case "burn":
		awaitLine()
		// By its own CPU time: on a busy machine wall time says little.
		used := func() int64 {
			var u syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
				os.Exit(1)
			}
			return u.Utime.Nano() + u.Stime.Nano()
		}
		for end := used() + int64(10*time.Millisecond); used() < end; {
		}
	case "spin":
		awaitLine()
		for n := 0; n >= 0; n++ {
		}
	case "sleep":
		time.Sleep(time.Hour)
	}
}

func awaitLine() { _, _ = os.Stdin.Read(make([]byte, 1)) }

// kernel gives a new group on this machine, with all controllers that limits
// need, and removes it after the test.
func kernel(t *testing.T) (FS, Group) {
	t.Helper()
	f, err := Open()
	if err == nil && os.Getuid() == 0 {
		g := f.Group(fmt.Sprintf("/faasd-sec-test-%d-%d", os.Getpid(), time.Now().UnixNano()))
		if err = g.Create(CPU, CPUAcct, Memory, PIDs, BlockIO, Freezer); err == nil {
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				if err := g.Remove(ctx); err != nil {
					t.Error(err)
				}
				if g.Exists() {
					t.Errorf("cgroup %s is left", g.Path())
				}
			})
			return f, g
		}
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatalf("cannot make cgroups (%v), and REQUIRE_ALL=1", err)
	}
	t.Skipf("cannot make cgroups: %v", err)
	return FS{}, Group{}
}

// limited starts a helper in the group; it begins once go is called.
func limited(t *testing.T, g Group, what string) (start func(), cmd *exec.Cmd) {
	t.Helper()
	return within(t, g, what, CPU, CPUAcct, Memory, PIDs, Freezer)
}

// within is limited by some controllers alone.
func within(t *testing.T, g Group, what string, controllers ...Controller) (start func(), cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helper+"="+what)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone
		_ = cmd.Wait()
	})
	if err := g.Add(cmd.Process.Pid, controllers...); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Error(err)
		}
	}, cmd
}

func TestTheKernelTakesAndShowsLimits(t *testing.T) {
	_, g := kernel(t)
	dev, err := DeviceOf(".")
	if err != nil {
		t.Logf("without I/O: %v", err)
	}
	r := api.Resources{CPU: 250, Memory: 33<<20 + 17, PIDs: 40}
	if err == nil {
		r.ReadBps, r.WriteBps = 1<<20, 2<<20
	}
	l, err := For(r, dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Verify(l); err == nil {
		t.Error("limits were verified that nobody had written")
	}
	// Up, down and up again: the order of writes depends on the direction.
	for _, mem := range []int64{33<<20 + 17, 16 << 20, 64 << 20} {
		l.Memory = &MemoryLimit{Bytes: mem}
		if err := errors.Join(g.Apply(l), g.Verify(l)); err != nil {
			t.Errorf("memory %d: %v", mem, err)
		}
	}
	l.PIDs = new(int64)
	if err := g.Apply(l); err == nil {
		t.Error("a pids limit of 0 was written")
	}
	if _, err := g.Usage(); err != nil {
		t.Error(err)
	}
}

// notices collects what a watcher tells.
type notices struct {
	mu   sync.Mutex
	seen map[string]int64
}

func (n *notices) note(id string, c Counter, by int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen[id+" "+string(c)] += by
}

func (n *notices) get(key string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[key]
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func watch(t *testing.T) (*Watcher, *notices) {
	t.Helper()
	n := &notices{seen: make(map[string]int64)}
	w, err := NewWatcher(n.note)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w, n
}

func TestAnOOMKillIsToldOnce(t *testing.T) {
	_, g := kernel(t)
	_, quiet := kernel(t)
	w, n := watch(t)
	if err := errors.Join(w.Add("hog", g), w.Add("quiet", quiet)); err != nil {
		t.Fatal(err)
	}
	if err := w.Add("hog", g); err == nil {
		t.Error("an id was taken twice")
	}
	if err := g.Apply(Limits{Memory: &MemoryLimit{Bytes: 24 << 20}}); err != nil {
		t.Fatal(err)
	}
	for round := int64(1); round <= 2; round++ {
		start, cmd := limited(t, g, "hog")
		start()
		_ = cmd.Wait()
		if s := cmd.ProcessState.String(); s != "signal: killed" {
			t.Fatalf("the hog ended with %s", s)
		}
		eventually(t, "a notice", func() bool { return n.get("hog oom_kills") == round })
	}
	time.Sleep(settle + 10*recheck) // in which nothing more may be told
	kills, err := g.OOMKills()
	if err != nil || n.get("hog oom_kills") != kills || kills != 2 {
		t.Errorf("told of %d kills, the kernel counts %d, %v", n.get("hog oom_kills"), kills, err)
	}
	if n.get("quiet oom_kills") != 0 {
		t.Error("a group in which nothing was killed was told of")
	}
}

func TestRefusedForksAreTold(t *testing.T) {
	_, g := kernel(t)
	w, n := watch(t)
	if err := w.Add("x", g); err != nil {
		t.Fatal(err)
	}
	pids := int64(30)
	if err := g.Apply(Limits{PIDs: &pids}); err != nil {
		t.Fatal(err)
	}
	start, _ := limited(t, g, "fork")
	start()
	eventually(t, "a notice", func() bool { return n.get("x pids_refusals") > 0 })
	w.Remove("x")
	w.Remove("x")
}

func TestAQuotaHoldsBack(t *testing.T) {
	_, g := kernel(t)
	cpu := CPULimit{Quota: time.Millisecond, Period: 50 * time.Millisecond, Shares: 1024}
	if err := g.Apply(Limits{CPU: &cpu}); err != nil {
		t.Fatal(err)
	}
	start, cmd := limited(t, g, "burn")
	start()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	u, err := g.Usage()
	if err != nil || u.CPU == 0 || u.Throttled == 0 {
		t.Errorf("usage %+v, %v of a process that asked for more than its quota", u, err)
	}
}

func TestAFrozenGroupStandsStill(t *testing.T) {
	_, g := kernel(t)
	_, cmd := limited(t, g, "sleep")
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, err := g.Frozen(); err != nil || !f {
		t.Errorf("frozen: %v, %v", f, err)
	}
	if err := g.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	in, err := g.Contains(Memory, cmd.Process.Pid)
	if err != nil || !in {
		t.Errorf("the process is in the group: %v, %v", in, err)
	}
	pids, err := g.Processes()
	if err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
}

func TestRemoveKillsWhatRuns(t *testing.T) {
	_, g := kernel(t)
	inner := g.Child("inner") // on v2 a group with children holds no process itself
	if err := inner.Create(CPU, CPUAcct, Memory, PIDs, Freezer); err != nil {
		t.Fatal(err)
	}
	_, cmd := limited(t, inner, "sleep")
	var reaper sync.WaitGroup
	reaper.Go(func() { _ = cmd.Wait() })
	err := g.Remove(t.Context())
	reaper.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if g.Exists() {
		t.Error("the group is still there")
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
}

// Who froze it may have been killed, and whoever removes it does not know.
func TestRemoveKillsWhatIsFrozen(t *testing.T) {
	_, g := kernel(t)
	inner := g.Child("inner")
	if err := inner.Create(CPU, CPUAcct, Memory, PIDs, Freezer); err != nil {
		t.Fatal(err)
	}
	_, cmd := limited(t, inner, "sleep")
	for _, frozen := range []Group{inner, g} {
		if err := frozen.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { // or a failure would leave it for ever
		_ = g.Thaw(t.Context())
		_ = inner.Thaw(t.Context())
	}()
	var reaper sync.WaitGroup
	reaper.Go(func() { _ = cmd.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	reaper.Wait()
	if g.Exists() {
		t.Error("the group is still there")
	}
}

// lacking ends a test that this machine cannot run: where all must run, it fails.
func lacking(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatalf("%v, and REQUIRE_ALL=1", err)
	}
	t.Skip(err)
}

func TestTheMachineIsRead(t *testing.T) {
	f, err := Open()
	if err != nil {
		lacking(t, err)
	}
	m, err := f.Machine()
	if err != nil {
		t.Fatal(err)
	}
	if m.Capacity.CPU <= 0 || m.Free.Memory <= 0 || m.Free.Memory > m.Capacity.Memory || m.Free.PIDs <= 0 || m.Free.PIDs >= m.Capacity.PIDs {
		t.Errorf("%+v", m)
	}
	for _, r := range []string{"cpu", "memory", "io"} {
		if _, _, err := f.Pressure(r); err != nil {
			t.Error(err)
		}
	}
}

func TestPressureIsParsed(t *testing.T) {
	_, g := unified(t)
	p, ok, err := g.Pressure("memory")
	want := Pressure{SomeAvg10: 1.25, FullAvg10: 0.75, SomeTotal: 1234 * time.Microsecond, FullTotal: 567 * time.Microsecond}
	if err != nil || !ok || p != want {
		t.Errorf("%+v, %v, %v; want %+v", p, ok, err, want)
	}
	if _, ok, err := g.Pressure("irq"); ok || err != nil {
		t.Errorf("pressure that is not kept: %v, %v", ok, err)
	}
	if _, _, err := pressureLine("avg10=x total=1"); err == nil {
		t.Error("nonsense was read")
	}
	if _, _, err := pressureLine("avg60=1"); err == nil {
		t.Error("a line without avg10 was read")
	}
}

func TestADeviceIsTheWholeDisk(t *testing.T) {
	d, err := DeviceOf(t.TempDir())
	if err != nil {
		lacking(t, fmt.Errorf("the temporary directory is on no disk: %w", err))
	}
	if _, err := os.Stat("/sys/block"); err != nil {
		lacking(t, err)
	}
	if _, err := os.Stat("/sys/dev/block/" + d.String() + "/partition"); err == nil {
		t.Errorf("%s is a partition", d)
	}
	if _, err := DeviceOf("/proc"); err == nil {
		t.Error("a device under /proc")
	}
}
