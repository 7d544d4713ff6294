package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// AgentFunc stands in for PID 1 of a Fake's sandbox. Its sockets are real ones
// in task.Spec.SocketDir. It should return its exit code soon after task.Term
// is closed, SIGTERM, and must return when ctx is done, SIGKILL.
type AgentFunc func(ctx context.Context, task Task) (exitCode uint32)

// Task is what an AgentFunc knows of its sandbox.
type Task struct {
	Spec  runtime.Spec // UID and GID as they were decided; of a blank its ID, AgentPath, AgentEnv and SocketDir
	Blank bool         // it was made by CreateBlank
	Term  <-chan struct{}
}

// Obedient is an agent that does nothing until it is told to end.
func Obedient(ctx context.Context, task Task) uint32 {
	select {
	case <-task.Term:
		return 0
	case <-ctx.Done():
		return 137
	}
}

// Op names an operation of a Fake that can be made to fail.
type Op string

// The operations.
const (
	OpPull   Op = "pull"
	OpCreate Op = "create"
	OpBlank  Op = "blank"
	OpAdmit  Op = "admit"
	OpBind   Op = "bind"
	OpFreeze Op = "freeze"
	OpThaw   Op = "thaw"
	OpRemove Op = "remove"
)

// Fake is an in-memory runtime.Runtime whose agents are Go functions. Fakes
// that Reopen returns share one machine.
type Fake struct {
	machine *machine
	out     chan runtime.Event
	wake    chan struct{}
	done    chan struct{}
	pumped  chan struct{}

	mu      sync.Mutex
	closed  bool
	pending []runtime.Event
}

var _ runtime.Runtime = (*Fake)(nil)

// machine is what outlives a daemon.
type machine struct {
	agent AgentFunc

	mu        sync.Mutex
	images    map[string]runtime.Image
	unfit     map[string]string // digest -> why CanBind refuses it
	sandboxes map[string]*fakeSandbox
	faults    map[Op][]error
	calls     map[Op]int
	nextPID   int
	observer  *Fake // who gets events now
}

// NewFake makes a machine without images or sandboxes. agent is run for each
// sandbox; nil is Obedient.
func NewFake(agent AgentFunc) *Fake {
	if agent == nil {
		agent = Obedient
	}
	return newFake(&machine{
		agent: agent, images: make(map[string]runtime.Image), sandboxes: make(map[string]*fakeSandbox),
		unfit: make(map[string]string), calls: make(map[Op]int), faults: make(map[Op][]error), nextPID: 1 << 22, // above any real pid
	})
}

func newFake(m *machine) *Fake {
	f := &Fake{
		machine: m, out: make(chan runtime.Event), wake: make(chan struct{}, 1),
		done: make(chan struct{}), pumped: make(chan struct{}),
	}
	m.mu.Lock()
	m.observer = f
	m.mu.Unlock()
	go f.pump()
	return f
}

// Reopen is a daemon's restart: it closes f and returns a Fake on the same
// machine, whose Recover finds the sandboxes that still run.
func (f *Fake) Reopen() *Fake {
	_ = f.Close() // always nil
	return newFake(f.machine)
}

// AddImage makes an image that Pull answers.
func (f *Fake) AddImage(img runtime.Image) {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	f.machine.images[img.Digest] = img
}

// Fail makes the next call of op return err.
func (f *Fake) Fail(op Op, err error) {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	f.machine.faults[op] = append(f.machine.faults[op], err)
}

// Calls counts how often op was called.
func (f *Fake) Calls(op Op) int {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	return f.machine.calls[op]
}

func (m *machine) fault(op Op) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[op]++
	if len(m.faults[op]) == 0 {
		return nil
	}
	err := m.faults[op][0]
	m.faults[op] = m.faults[op][1:]
	return err
}

// Pull implements runtime.Runtime: images are those of AddImage.
func (f *Fake) Pull(_ context.Context, ref, digest string) (runtime.Image, error) {
	if err := f.machine.fault(OpPull); err != nil {
		return runtime.Image{}, err
	}
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	img, ok := f.machine.images[digest]
	if !ok {
		return runtime.Image{}, fmt.Errorf("pull %s: no image %s", ref, digest)
	}
	return img, nil
}

// Images implements runtime.Runtime.
func (f *Fake) Images(context.Context) ([]string, error) {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	var out []string
	for d := range f.machine.images {
		out = append(out, d)
	}
	slices.Sort(out)
	return out, nil
}

// Forget implements runtime.Runtime.
func (f *Fake) Forget(_ context.Context, digest string) error {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	delete(f.machine.images, digest)
	return nil
}

// Create implements runtime.Runtime.
func (f *Fake) Create(ctx context.Context, spec runtime.Spec) (runtime.Sandbox, error) {
	if err := errors.Join(checkFakePlace(spec.ID, spec.AgentPath, spec.SocketDir), checkFakeSpec(spec)); err != nil {
		return nil, err
	}
	if err := errors.Join(ctx.Err(), f.machine.fault(OpCreate)); err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	spec = withIDs(spec)
	return f.add(ctx, Task{Spec: spec}, runtime.Info{
		ID: spec.ID, Function: spec.Function, Revision: spec.Revision, SocketDir: spec.SocketDir,
		Resources: spec.Resources, Reserved: spec.Reserved, UID: spec.UID, GID: spec.GID, Start: api.StartPlain,
	})
}

// add makes a sandbox and starts its agent.
func (f *Fake) add(ctx context.Context, task Task, info runtime.Info) (runtime.Sandbox, error) {
	if f.isClosed() {
		return nil, errors.New("fake runtime: closed")
	}
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sandboxes[info.ID] != nil {
		return nil, api.Errorf(api.CodeConflict, "sandbox %s exists already", info.ID)
	}
	if _, ok := m.images[task.Spec.Image.Digest]; !ok && !task.Blank {
		return nil, fmt.Errorf("create sandbox %s: no image %s", info.ID, task.Spec.Image.Digest)
	}
	m.nextPID++
	info.CreatedAt, info.PID = time.Now().UTC().Truncate(time.Millisecond), m.nextPID
	s := &fakeSandbox{m: m, term: make(chan struct{}), gone: make(chan struct{}), info: info}
	m.sandboxes[info.ID] = s
	task.Term = s.term
	s.start(ctx, task)
	return s, nil
}

// withIDs decides the function's ids as a runtime does for an image whose USER
// is root.
func withIDs(spec runtime.Spec) runtime.Spec {
	if spec.UID == 0 {
		spec.UID, spec.GID = 10001, 10001
	}
	if spec.GID == 0 {
		spec.GID = spec.UID
	}
	return spec
}

// checkFakeSpec refuses what a real runtime refuses before it looks at the
// machine.
func checkFakeSpec(s runtime.Spec) error {
	switch {
	case s.Resources.CPU <= 0 || s.Resources.Memory <= 0 || s.Resources.PIDs <= 0:
		return api.Invalid("resources", "give cpu, memory and pids", "a limit is missing")
	case len(s.Reserved) > runtime.MaxReserved:
		return api.Invalid("reserved", "use less", "too long")
	case s.Resources.Tmp > s.Resources.Memory:
		return api.Invalid("tmp", "keep it within the memory limit", "too large")
	case s.Resources.Storage < 0 || s.Resources.Storage > s.Resources.Memory-s.Resources.Tmp:
		return api.Invalid("storage", "keep it, together with tmp, within the memory limit", "out of range")
	}
	for _, m := range s.Mounts {
		if m.Tree == nil || len(m.Target) < 2 || m.Target[0] != '/' || m.Target == "/proc" {
			return api.Invalid("mounts", "give a mount and an absolute path", m.Target)
		}
	}
	for _, t := range s.Tmpfs {
		if t.Bytes <= 0 || len(t.Path) < 2 || t.Path[0] != '/' || t.Path == "/proc" {
			return api.Invalid("tmpfs", "give an absolute path and a size", t.Path)
		}
	}
	return nil
}

// checkFakePlace refuses a place that a sandbox cannot have.
func checkFakePlace(id, agent, socketDir string) error {
	if id == "" || len(id) > 64 {
		return api.Invalid("id", "use 1 to 64 of a-z, 0-9 and '-'", id)
	}
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return api.Invalid("id", "use 1 to 64 of a-z, 0-9 and '-'", id)
		}
	}
	if _, err := os.Stat(socketDir); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	if _, err := os.Stat(agent); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}

// Recover implements runtime.Runtime. It removes what has ended, and blanks.
func (f *Fake) Recover(context.Context) ([]runtime.Sandbox, error) {
	m := f.machine
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.sandboxes))
	m.mu.Unlock()
	var out []runtime.Sandbox
	for _, s := range all {
		info := s.Info()
		if info.Blank {
			s.kill()
			<-s.gone
		}
		select {
		case <-s.gone:
			m.mu.Lock()
			delete(m.sandboxes, info.ID)
			m.mu.Unlock()
			if err := os.RemoveAll(info.SocketDir); err != nil {
				return nil, err
			}
		default:
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b runtime.Sandbox) int { return a.Info().CreatedAt.Compare(b.Info().CreatedAt) })
	return out, nil
}

// Events implements runtime.Runtime.
func (f *Fake) Events() <-chan runtime.Event { return f.out }

// Close implements runtime.Runtime.
func (f *Fake) Close() error {
	f.mu.Lock()
	was := f.closed
	f.closed = true
	f.mu.Unlock()
	if !was {
		close(f.done)
	}
	<-f.pumped
	return nil
}

func (f *Fake) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

func (f *Fake) put(e runtime.Event) {
	f.mu.Lock()
	f.pending = append(f.pending, e)
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *Fake) pump() {
	defer close(f.pumped)
	defer close(f.out)
	for {
		f.mu.Lock()
		var e runtime.Event
		some := len(f.pending) > 0
		if some {
			e, f.pending = f.pending[0], f.pending[1:]
		}
		f.mu.Unlock()
		if !some {
			select {
			case <-f.done:
				return
			case <-f.wake:
			}
			continue
		}
		select {
		case <-f.done:
			return
		case f.out <- e:
		}
	}
}
