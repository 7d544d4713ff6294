package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
)

const (
	helper   = "MONITOR_TEST_HELPER"
	patience = 30 * time.Second
)

// TestMain lets the test binary be the task that is watched.
func TestMain(m *testing.M) {
	what := os.Getenv(helper)
	if what == "" {
		goleak.VerifyTestMain(m)
		return
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // until it is in its group
	var err error
	switch what {
	case "spin":
		for n := 0; n >= 0; n++ {
		}
	case "hold": // 92 MiB, and then nothing
		var b []byte
		if b, err = unix.Mmap(-1, 0, 92<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err == nil {
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			time.Sleep(time.Hour)
		}
	case "hog":
		for keep := [][]byte{}; ; {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
		}
	case "fill": // a file system of 1 MiB of its own
		err = fill()
	case "send":
		err = send()
	case "sleep":
		time.Sleep(time.Hour)
	}
	fmt.Println("failed:", err)
	os.Exit(1)
}

func fill() error {
	dir, err := os.MkdirTemp("", "monitor-test")
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return err
	}
	fmt.Println(dir)
	buf := make([]byte, 4096)
	f, err := os.Create(dir + "/half")
	if err != nil {
		return err
	}
	for range 128 {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // now all of it
	for err == nil {
		_, err = f.Write(buf)
	}
	fmt.Println("full")
	time.Sleep(time.Hour)
	return nil
}

func send() error {
	for _, args := range [][]string{{"link", "add", "v0", "type", "veth", "peer", "name", "v1"}, {"link", "set", "v0", "up"}, {"link", "set", "v1", "up"},
		{"addr", "add", "10.77.0.1/24", "dev", "v0"}, {"neigh", "add", "10.77.0.2", "lladdr", "02:00:00:00:00:02", "dev", "v0"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	c, err := net.Dial("udp", "10.77.0.2:9")
	if err != nil {
		return err
	}
	for buf := make([]byte, 1000); ; time.Sleep(10 * time.Millisecond) {
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

// events is a log in memory.
type events struct {
	mu   sync.Mutex
	list []anomaly.Event
	t    testing.TB
}

func (e *events) Append(ev anomaly.Event) {
	if err := ev.Validate(); err != nil {
		e.t.Errorf("%+v: %v", ev, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, ev)
}

func (e *events) find(kind anomaly.Kind, code, sandbox string) (found []anomaly.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.list {
		if ev.Kind == kind && ev.Code == code && ev.Sandbox == sandbox {
			found = append(found, ev)
		}
	}
	return found
}

// world is a monitor with tasks on this machine's kernel.
type world struct {
	t     testing.TB
	fs    cgroups.FS
	mu    sync.Mutex
	tasks []Task
	log   *events
	m     *Monitor
	n     int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	fs, err := cgroups.Open()
	if err != nil || os.Getuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatalf("cannot make cgroups (%v), and REQUIRE_ALL=1", err)
		}
		t.Skipf("cannot make cgroups: %v", err)
	}
	return &world{t: t, fs: fs, log: &events{t: t}}
}

func (w *world) config() Config {
	cfg := DefaultConfig()
	cfg.Every, cfg.SlowEvery = 100*time.Millisecond, 200*time.Millisecond
	cfg.Thresholds.For, cfg.Thresholds.Again = 300*time.Millisecond, time.Hour
	cfg.Tasks, cfg.Anomalies = w.list, w.log
	return cfg
}

func (w *world) list() []Task {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.tasks)
}

// run starts the monitor; it ends with the test.
func (w *world) run(cfg Config) {
	w.t.Helper()
	m, err := New(cfg, w.fs, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = m
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

// group makes a cgroup with one inside, and limits on both as a sandbox has them.
func (w *world) group(limits api.Resources) (outer, inner cgroups.Group) {
	w.t.Helper()
	w.n++
	outer = w.fs.Group(fmt.Sprintf("/faasd-sec-monitor-%d-%d", os.Getpid(), w.n))
	inner = outer.Child("fn")
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := outer.Remove(ctx); err != nil {
			w.t.Error(err)
		}
	})
	over := limits
	over.Memory += 16 << 20
	l, err := cgroups.For(over, cgroups.Device{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, step := range []error{
		outer.Create(cgroups.CPU, cgroups.CPUAcct, cgroups.Memory, cgroups.PIDs, cgroups.BlockIO), outer.Apply(l),
		inner.Create(cgroups.Memory, cgroups.PIDs),
		inner.Apply(cgroups.Limits{Memory: &cgroups.MemoryLimit{Bytes: limits.Memory}, PIDs: &limits.PIDs}),
	} {
		if step != nil {
			w.t.Fatal(step)
		}
	}
	return outer, inner
}

type proc struct {
	id  string
	cmd *exec.Cmd
	in  func()
	out chan string
}

// start has a helper run under limits and be watched.
func (w *world) start(what string, limits api.Resources, flags uintptr) *proc {
	w.t.Helper()
	outer, inner := w.group(limits)
	p := &proc{id: fmt.Sprintf("s-%d", w.n), cmd: exec.Command("/proc/self/exe"), out: make(chan string, 16)}
	p.cmd.Env = append(os.Environ(), helper+"="+what)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	r, wr, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	p.cmd.Stdout = wr
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	wr.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			if err != nil {
				return
			}
			p.out <- strings.TrimSpace(string(buf[:n]))
		}
	}()
	w.t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may be gone
		_ = p.cmd.Wait()
		<-read
		r.Close()
	})
	pid := p.cmd.Process.Pid
	if err := outer.Add(pid, cgroups.CPU, cgroups.CPUAcct, cgroups.BlockIO); err != nil && w.fs.Mode() != cgroups.V2 {
		w.t.Fatal(err)
	}
	if err := inner.Add(pid, cgroups.Memory, cgroups.PIDs); err != nil {
		w.t.Fatal(err)
	}
	p.in = func() {
		if _, err := in.Write([]byte("\n")); err != nil {
			w.t.Error(err)
		}
	}
	w.mu.Lock()
	w.tasks = append(w.tasks, Task{ID: p.id, Function: "hello.openfaas-fn", Revision: strings.Repeat("ab", 32),
		Limits: limits, Group: outer, Inner: []cgroups.Group{inner}})
	w.mu.Unlock()
	p.in()
	return p
}

// until polls.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

var someLimits = api.Resources{CPU: 100, Memory: 64 << 20, PIDs: 50}

func TestAThrottledTaskIsSeenAndNoted(t *testing.T) {
	w := newWorld(t)
	w.run(w.config())
	p := w.start("spin", someLimits, 0)
	until(t, "a note of throttling", func() bool { return len(w.log.find(anomaly.Throttled, "cpu", p.id)) > 0 })
	e := w.log.find(anomaly.Throttled, "cpu", p.id)[0]
	n := e.Numbers
	if e.Function != "hello.openfaas-fn" || e.Revision.IsZero() || n["limit"] != 100 || n["duration_ms"] < 300 ||
		n["throttled_periods"] < 1 || n["periods"] < n["throttled_periods"] || n["throttled_us"] <= 0 || n["usage_us"] <= 0 {
		t.Errorf("%+v", e)
	}
	until(t, "use near the quota", func() bool {
		u, ok := w.m.Usage(p.id)
		return ok && u.CPU > 40 && u.CPU < 250 && u.Throttled > 0.25 && u.ThrottledUs > 0
	})
	if h := w.m.TaskHistory(p.id, 10, false); h == nil || len(h.CPU) == 0 || h.EveryMs != 100 {
		t.Errorf("history: %+v", h)
	}
	if got := w.m.Totals(); got.CPU <= 0 || got.Throttled <= 0 || got.Tasks != 1 {
		t.Errorf("totals: %+v", got)
	}
	// It is forgotten when it is gone.
	w.mu.Lock()
	w.tasks = nil
	w.mu.Unlock()
	until(t, "the task to be forgotten", func() bool { _, ok := w.m.Usage(p.id); return !ok })
}

func TestMemoryNearItsLimitIsNotedWithItsNumbers(t *testing.T) {
	w := newWorld(t)
	w.run(w.config())
	limits := api.Resources{CPU: 1000, Memory: 100 << 20, PIDs: 50}
	p := w.start("hold", limits, 0)
	cfg := w.m.cfg.Thresholds
	t.Cleanup(func() {
		if t.Failed() {
			u, _ := w.m.Usage(p.id)
			t.Logf("%+v", u)
		}
	})
	until(t, "a note of memory", func() bool { return len(w.log.find(anomaly.OverThreshold, "memory", p.id)) > 0 })
	e := w.log.find(anomaly.OverThreshold, "memory", p.id)[0]
	if n := e.Numbers; n["threshold"] != int64(float64(limits.Memory)*cfg.Memory) || n["value"] < n["threshold"] || n["limit"] != limits.Memory || n["duration_ms"] < 300 {
		t.Errorf("%+v", e)
	}
}

func TestOOMKillsAreCounted(t *testing.T) {
	w := newWorld(t)
	w.run(w.config())
	p := w.start("hog", api.Resources{CPU: 1000, Memory: 24 << 20, PIDs: 50}, 0)
	until(t, "the kill to be counted", func() bool {
		u, ok := w.m.Usage(p.id)
		return ok && u.OOMKills == 1 && w.m.Totals().OOMKills == 1
	})
}

func TestAFullFileSystemOfATaskIsNoted(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	// It sees the machine's file systems, as a sandbox does not.
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		cfg.Skip = append(cfg.Skip, strings.Fields(line)[4])
	}
	w.run(cfg)
	p := w.start("fill", someLimits, syscall.CLONE_NEWNS)
	dir := <-p.out
	t.Cleanup(func() { os.Remove(dir) })
	if strings.HasPrefix(dir, "failed") {
		t.Fatal(dir)
	}
	until(t, "half of the file system to be used", func() bool {
		u, ok := w.m.Usage(p.id)
		return ok && u.StorageUsed == 512<<10 && u.StorageSize >= 1<<20
	})
	if got := w.log.find(anomaly.ENOSPC, "storage", p.id); len(got) > 0 {
		t.Fatalf("%+v", got)
	}
	p.in()
	until(t, "a note of the full file system", func() bool { return len(w.log.find(anomaly.ENOSPC, "storage", p.id)) > 0 })
	if n := w.log.find(anomaly.ENOSPC, "storage", p.id)[0].Numbers; n["used"] != 1<<20 || n["total"] < 1<<20 {
		t.Errorf("%v", n)
	}
}

func TestTrafficOfATasksInterfaceIsSeen(t *testing.T) {
	w := newWorld(t)
	w.run(w.config())
	quiet := w.start("sleep", someLimits, syscall.CLONE_NEWNET)
	p := w.start("send", someLimits, syscall.CLONE_NEWNET)
	until(t, "traffic", func() bool {
		select {
		case line := <-p.out:
			t.Fatal(line)
		default:
		}
		u, ok := w.m.Usage(p.id)
		return ok && u.Network && u.Out > 8000 && u.In > 8000
	})
	if u, _ := w.m.Usage(quiet.id); u.Network {
		t.Errorf("a task with loopback alone has a network: %+v", u)
	}
}

func TestTheMachineIsSeen(t *testing.T) {
	w := newWorld(t)
	w.run(w.config())
	until(t, "a sample of the machine", func() bool {
		u, at := w.m.Machine()
		return at > 0 && u.MemoryTotal > u.MemoryAvailable && u.MemoryAvailable > 0 && u.DiskSize > u.DiskFree && u.CPUs > 0 && u.CPU > 0
	})
	if h := w.m.MachineHistory(5, false); len(h.CPU) == 0 || len(h.CPU) != len(h.Memory) {
		t.Errorf("history: %+v", h)
	}
}
