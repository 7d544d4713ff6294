package runtimetest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// fakeSandbox is one goroutine that runs the agent function.
type fakeSandbox struct {
	m    *machine
	kill context.CancelFunc
	term chan struct{}
	gone chan struct{}
	once sync.Once // closes term

	mu       sync.Mutex
	info     runtime.Info
	bound    bool // Bind was called
	frozen   bool
	usage    runtime.Usage
	kills    int64
	admitted []int
	removed  bool
}

var _ runtime.Sandbox = (*fakeSandbox)(nil)

// start runs the agent. Like a task it does not end with the caller of Create.
func (s *fakeSandbox) start(ctx context.Context, task Task) {
	id := task.Spec.ID
	ctx, s.kill = context.WithCancel(context.WithoutCancel(ctx))
	go func() { // ends with Remove or by itself
		code := s.m.agent(ctx, task)
		s.m.report(runtime.Event{Kind: runtime.EventExit, ID: id, ExitCode: code, At: time.Now()})
		close(s.gone)
	}()
}

// report gives an event to the daemon of the moment.
func (m *machine) report(e runtime.Event) {
	m.mu.Lock()
	f := m.observer
	m.mu.Unlock()
	f.put(e)
}

func (m *machine) find(id string) *fakeSandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sandboxes[id]
}

// Sandboxes lists the ids that exist, sorted.
func (f *Fake) Sandboxes() []string {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	var ids []string
	for id := range f.machine.sandboxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// OOM lets the kernel kill something of the sandbox's function.
func (f *Fake) OOM(id string) {
	if s := f.machine.find(id); s != nil {
		s.mu.Lock()
		s.kills++
		s.mu.Unlock()
		f.machine.report(runtime.Event{Kind: runtime.EventOOM, ID: id, At: time.Now()})
	}
}

// RefuseFork lets the pids limit of a sandbox refuse a fork.
func (f *Fake) RefuseFork(id string) {
	if f.machine.find(id) != nil {
		f.machine.report(runtime.Event{Kind: runtime.EventPIDsLimit, ID: id, At: time.Now()})
	}
}

// SetUsage is what Usage answers for a sandbox from now on.
func (f *Fake) SetUsage(id string, u runtime.Usage) {
	if s := f.machine.find(id); s != nil {
		s.mu.Lock()
		s.usage = u
		s.mu.Unlock()
	}
}

// Admitted lists the pids given to AdmitLauncher of a sandbox.
func (f *Fake) Admitted(id string) []int {
	s := f.machine.find(id)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.admitted)
}

// Kill ends a sandbox's agent as SIGKILL does.
func (f *Fake) Kill(id string) {
	if s := f.machine.find(id); s != nil {
		s.kill()
	}
}

func (s *fakeSandbox) ID() string { return s.Info().ID }

func (s *fakeSandbox) Info() runtime.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

func (s *fakeSandbox) alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return fmt.Errorf("sandbox %s: %w", s.info.ID, runtime.ErrGone)
	}
	return nil
}

// AdmitLauncher takes any pid but this process's parent, which can never be
// of a sandbox.
func (s *fakeSandbox) AdmitLauncher(_ context.Context, pid int) error {
	if err := s.alive(); err != nil {
		return err
	}
	if err := s.m.fault(OpAdmit); err != nil {
		return err
	}
	if pid <= 1 || pid == os.Getppid() {
		return api.Errorf(api.CodeForbidden, "process %d is not of sandbox %s", pid, s.ID())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.admitted = append(s.admitted, pid)
	return nil
}

func (s *fakeSandbox) Usage(context.Context) (runtime.Usage, error) {
	if err := s.alive(); err != nil {
		return runtime.Usage{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usage, nil
}

func (s *fakeSandbox) OOMKills(context.Context) (int64, error) {
	if err := s.alive(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kills, nil
}

func (s *fakeSandbox) Remove(ctx context.Context, grace time.Duration) error {
	if err := s.m.fault(OpRemove); err != nil {
		return err
	}
	if s.alive() != nil {
		return nil
	}
	if grace > 0 {
		s.once.Do(func() { close(s.term) })
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-s.gone:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	s.kill()
	<-s.gone
	s.mu.Lock()
	first, info := !s.removed, s.info
	s.removed = true
	s.mu.Unlock()
	if !first {
		return nil
	}
	s.m.mu.Lock()
	delete(s.m.sandboxes, info.ID)
	s.m.mu.Unlock()
	return os.RemoveAll(info.SocketDir)
}
