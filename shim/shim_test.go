package shim_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime/containerd/daemon"
	"github.com/faasd-sec/faasd-sec/shim/boot"
	"github.com/faasd-sec/faasd-sec/shim/shimtest"
)

func TestMain(m *testing.M) { os.Exit(shimtest.Main(m)) }

// world is a private containerd with the shim's programs, and a namespace.
type world struct {
	*shimtest.Fixture
	client *client.Client
	daemon *daemon.Daemon
	config daemon.Config
	shim   string
	ns     string
	serial int
	mu     sync.Mutex
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Fixture: shimtest.New(t), ns: fmt.Sprintf("shim%d", os.Getpid())}
	w.shim = shimtest.Shim()
	w.config = daemon.Default(filepath.Join(w.Dir, "c"))
	var err error
	if w.daemon, err = daemon.Start(deadline(t), w.config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, "every shim has ended", func() bool { return len(w.shims(t)) == 0 })
		if err := w.daemon.Stop(deadline(t)); err != nil {
			t.Error(err)
		}
		g, err := cgroups.Open()
		if err != nil {
			t.Fatal(err)
		}
		if left, err := g.Group(fmt.Sprintf("/faasd-sec-test/%d", os.Getpid())).Children(); err != nil || len(left) > 0 {
			t.Errorf("cgroups are left: %v, %v", left, err)
		}
	})
	w.connect(t)
	return w
}

func (w *world) connect(t *testing.T) {
	t.Helper()
	c, err := client.New(w.daemon.Address(), client.WithTimeout(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	w.client = c
	t.Cleanup(func() { _ = c.Close() })
}

func (w *world) ctx(t *testing.T) context.Context {
	return namespaces.WithNamespace(deadline(t), w.ns)
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("it never came that %s", what)
			return
		}
	}
}

// group names what serves this world's namespace.
func (w *world) group() boot.Group {
	return boot.Group{Address: w.daemon.Address(), Namespace: w.ns, Dir: boot.DefaultDir}
}

// shims are the processes that serve this world's namespace.
func (w *world) shims(t *testing.T) (pids []int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(b), w.shim+"\x00-namespace\x00"+w.ns+"\x00") && strings.HasSuffix(string(b), "serve\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// container makes a container of a specification.
func (w *world) container(t *testing.T, spec *specs.Spec) client.Container {
	t.Helper()
	w.mu.Lock()
	w.serial++
	id := fmt.Sprintf("c%d", w.serial)
	w.mu.Unlock()
	c, err := w.client.NewContainer(w.ctx(t), id, client.WithRuntime(w.shim, nil), func(_ context.Context, _ *client.Client, c *containers.Container) error {
		body, err := typeurl.MarshalAny(spec)
		c.Spec = body
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if task, err := c.Task(w.ctx(t), nil); err == nil { // of a test that has failed
			_, _ = task.Delete(w.ctx(t), client.WithProcessKill)
		}
		if err := c.Delete(w.ctx(t)); err != nil && !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	})
	return c
}

// task makes a task that waits for its start.
func (w *world) task(t *testing.T, spec *specs.Spec) client.Task {
	t.Helper()
	task, err := w.container(t, spec).NewTask(w.ctx(t), cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// run starts a task, with the channel that tells of its exit.
func (w *world) run(t *testing.T, what string) (client.Task, <-chan client.ExitStatus) {
	t.Helper()
	task := w.task(t, w.Spec(what))
	exit, err := task.Wait(w.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(w.ctx(t)); err != nil {
		t.Fatal(err)
	}
	return task, exit
}

func (w *world) remove(t *testing.T, task client.Task) *client.ExitStatus {
	t.Helper()
	s, err := task.Delete(w.ctx(t), client.WithProcessKill)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func status(t *testing.T, w *world, task client.Task) client.ProcessStatus {
	t.Helper()
	s, err := task.Status(w.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	return s.Status
}

func await(t *testing.T, exit <-chan client.ExitStatus, want uint32) {
	t.Helper()
	select {
	case s := <-exit:
		if code, at, err := s.Result(); code != want || err != nil || time.Since(at) > time.Minute {
			t.Errorf("exit code %d at %v, %v; want %d", code, at, err, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no exit was told")
	}
}

func TestTheLifeOfATask(t *testing.T) {
	w := newWorld(t)
	ectx, cancel := context.WithCancel(w.ctx(t))
	defer cancel()
	told, _ := w.client.Subscribe(ectx, `namespace==`+w.ns)
	spec := w.Spec("sleep")
	task := w.task(t, spec)
	if s := status(t, w, task); s != client.Created {
		t.Errorf("a new task is %s", s)
	}
	exit, err := task.Wait(w.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(w.ctx(t)); err != nil {
		t.Fatal(err)
	}
	if err := task.Start(w.ctx(t)); err == nil {
		t.Error("a task was started twice")
	}
	pids, err := task.Pids(w.ctx(t))
	if err != nil || len(pids) != 1 || pids[0].Pid != task.Pid() {
		t.Errorf("processes %v, %v; want %d", pids, err, task.Pid())
	}
	groups, err := cgroups.Open()
	if err != nil {
		t.Fatal(err)
	}
	format := "io.containerd.cgroups.v1.Metrics"
	if groups.Mode() == cgroups.V2 {
		format = "io.containerd.cgroups.v2.Metrics"
	}
	if m, err := task.Metrics(w.ctx(t)); err != nil || len(m.Data.GetValue()) == 0 || m.Data.GetTypeUrl() != format {
		t.Errorf("metrics %v, %v; want %s", m, err, format)
	}
	limit, zero := int64(48<<20), uint64(0)
	err = task.Update(w.ctx(t), client.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit, Swappiness: &zero}}))
	want := cgroups.Limits{Memory: &cgroups.MemoryLimit{Bytes: limit}}
	if err := errors.Join(err, groups.Group(spec.Linux.CgroupsPath).Verify(want)); err != nil {
		t.Errorf("an update: %v", err)
	}
	if err := task.Update(w.ctx(t), client.WithResources(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an update of what is not served: %v", err)
	}
	if err := task.Pause(w.ctx(t)); err != nil {
		t.Error(err)
	}
	if s := status(t, w, task); s != client.Paused {
		t.Errorf("a paused task is %s", s)
	}
	if err := task.Resume(w.ctx(t)); err != nil {
		t.Error(err)
	}
	if _, err := task.Exec(w.ctx(t), "x", &specs.Process{Args: []string{"/bin/init"}, Cwd: "/"}, cio.NullIO); !errdefs.IsNotImplemented(err) {
		t.Errorf("exec: %v", err)
	}
	if err := task.Kill(w.ctx(t), syscall.SIGKILL, client.WithKillAll); err != nil {
		t.Error(err)
	}
	await(t, exit, 137)
	if s := status(t, w, task); s != client.Stopped {
		t.Errorf("a killed task is %s", s)
	}
	if err := task.Kill(w.ctx(t), syscall.SIGKILL); !errdefs.IsNotFound(err) {
		t.Errorf("killing a dead task: %v", err)
	}
	if s := w.remove(t, task); s.ExitCode() != 137 {
		t.Errorf("deleted with exit code %d", s.ExitCode())
	}
	var topics []string
	for len(topics) < 6 {
		select {
		case e := <-told:
			if strings.HasPrefix(e.Topic, "/tasks/") {
				topics = append(topics, e.Topic)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("events: %v", topics)
		}
	}
	if got := strings.Join(topics, " "); got != "/tasks/create /tasks/start /tasks/paused /tasks/resumed /tasks/exit /tasks/delete" {
		t.Errorf("events: %s", got)
	}
}

func TestWhatIsNotServedFailsTheCreate(t *testing.T) {
	w := newWorld(t)
	spec := w.Spec("sleep")
	spec.Process.Terminal = true
	if _, err := w.container(t, spec).NewTask(w.ctx(t), cio.NullIO); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "process.terminal") {
		t.Errorf("a terminal: %v", err)
	}
	if _, err := w.container(t, w.Spec("sleep")).NewTask(w.ctx(t), cio.LogFile(filepath.Join(w.Dir, "log"))); !errdefs.IsNotImplemented(err) {
		t.Errorf("a log file: %v", err)
	}
	task := w.task(t, w.Spec("sleep")) // never started
	w.remove(t, task)
}

func TestOneProcessServesAllAndEndsWithTheLast(t *testing.T) {
	w := newWorld(t)
	one, exit := w.run(t, "exit 5")
	two, _ := w.run(t, "sleep")
	if pids := w.shims(t); len(pids) != 1 {
		t.Errorf("%d shims", len(pids))
	}
	await(t, exit, 5)
	w.remove(t, one)
	if s := status(t, w, two); s != client.Running {
		t.Errorf("the other task is %s", s)
	}
	w.remove(t, two)
	eventually(t, "the shim has ended", func() bool { return len(w.shims(t)) == 0 })
}

// Ends of the process and beginnings of tasks must not miss each other.
func TestTasksComeAndGoWhileTheProcessEndsAndStarts(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 12 {
				task, exit := w.run(t, "exit 3")
				await(t, exit, 3)
				w.remove(t, task)
			}
		})
	}
	wg.Wait()
}

func alive(pid uint32) bool { return syscall.Kill(int(pid), 0) == nil }

// freeze has a task that was just made stand still, as its node does: past the shim.
func (w *world) freeze(t *testing.T, task client.Task) {
	t.Helper()
	machine, err := cgroups.Open()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := task.Spec(w.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	g := machine.Group(spec.Linux.CgroupsPath)
	t.Cleanup(func() { _ = g.Thaw(context.Background()) }) // or a failure would leave it for ever
	if err := g.Freeze(w.ctx(t)); err != nil {
		t.Fatal(err)
	}
}

func TestAFrozenTaskIsKilled(t *testing.T) {
	w := newWorld(t)
	task, exit := w.run(t, "sleep")
	w.freeze(t, task)
	if err := task.Kill(w.ctx(t), syscall.SIGKILL, client.WithKillAll); err != nil {
		t.Fatal(err)
	}
	await(t, exit, 137)
	w.remove(t, task)
}

func TestAKilledShimLeavesNothingRunning(t *testing.T) {
	w := newWorld(t)
	spec := w.Spec("sleep")
	created := w.task(t, spec)
	frozen, _ := w.run(t, "sleep")
	w.freeze(t, frozen)
	running, exit := w.run(t, "sleep")
	for _, pid := range w.shims(t) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-exit: // containerd cannot say how
	case <-time.After(20 * time.Second):
		t.Error("no exit was told")
	}
	eventually(t, "the processes are gone", func() bool { return !alive(created.Pid()) && !alive(running.Pid()) && !alive(frozen.Pid()) })
	fs, err := cgroups.Open()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cgroups are gone", func() bool { return !fs.Group(spec.Linux.CgroupsPath).Exists() })
	eventually(t, "the files of the shim are gone", func() bool {
		left, err := filepath.Glob(strings.TrimSuffix(w.group().TaskSocket(), "sock") + "*")
		return err == nil && len(left) == 0
	})
	next, exit := w.run(t, "exit 4")
	await(t, exit, 4)
	w.remove(t, next)
}

func TestTasksSurviveContainerd(t *testing.T) {
	w := newWorld(t)
	stays, _ := w.run(t, "sleep")
	ends, _ := w.run(t, "sleep")
	if err := syscall.Kill(w.daemon.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !alive(stays.Pid()) {
		t.Error("a task ended with containerd")
	}
	// One ends while nobody is there to be told.
	if err := syscall.Kill(int(ends.Pid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.daemon, err = daemon.Start(deadline(t), w.config); err != nil {
		t.Fatal(err)
	}
	w.connect(t)
	told, _ := w.client.Subscribe(w.ctx(t), `topic=="/tasks/exit"`)
	for id, want := range map[string]client.ProcessStatus{stays.ID(): client.Running, ends.ID(): client.Stopped} {
		c, err := w.client.LoadContainer(w.ctx(t), id)
		if err != nil {
			t.Fatal(err)
		}
		task, err := c.Task(w.ctx(t), nil)
		if err != nil {
			t.Fatalf("task %s: %v", id, err)
		}
		if s := status(t, w, task); s != want {
			t.Errorf("task %s is %s, want %s", id, s, want)
		}
		if s := w.remove(t, task); s.ExitCode() != 137 {
			t.Errorf("task %s ended with %d", id, s.ExitCode())
		}
	}
	select {
	case e := <-told:
		if body, err := typeurl.UnmarshalAny(e.Event); err != nil {
			t.Error(err)
		} else if x, ok := body.(*events.TaskExit); !ok || x.ExitStatus != 137 {
			t.Errorf("event %v", body)
		}
	case <-time.After(20 * time.Second):
		t.Error("no exit was sent to the new containerd")
	}
}

// containerd 1.6 can lose a task that it was creating.
func TestATaskWhoseBundleIsGoneIsEnded(t *testing.T) {
	w := newWorld(t)
	task, _ := w.run(t, "sleep")
	w.freeze(t, task) // it may well stand
	found, err := filepath.Glob(filepath.Join(w.config.Dir, "state", "io.containerd.runtime.v2.task", w.ns, task.ID()))
	if err != nil || len(found) != 1 {
		t.Fatalf("bundle %v, %v", found, err)
	}
	if err := os.RemoveAll(found[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the task has ended", func() bool { return !alive(task.Pid()) })
	if _, err := task.Delete(w.ctx(t)); err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) {
		t.Log(err)
	}
}

func TestATaskThatIsOnlyAnnouncedDoesNotKeepTheProcess(t *testing.T) {
	w := newWorld(t)
	bundle := filepath.Join(w.Dir, "bundle")
	if err := os.Mkdir(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(deadline(t), w.shim, "-namespace", w.ns, "-address", w.daemon.Address(), "-id", "x", "start")
	cmd.Dir = bundle
	if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "unix://") {
		t.Fatalf("start: %s, %v", out, err)
	}
	if len(w.shims(t)) != 1 {
		t.Error("no shim waits for the task")
	}
	if err := os.RemoveAll(bundle); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the shim has ended", func() bool { return len(w.shims(t)) == 0 })
}
