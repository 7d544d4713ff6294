package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/faasd-sec/faasd-sec/shim/boot"
	"github.com/faasd-sec/faasd-sec/shim/container"
)

// Service has the tasks of one group.
type Service struct {
	group boot.Group
	pub   *publisher
	log   *slog.Logger
	done  chan struct{} // closed when the process is to end

	mu       sync.Mutex
	tasks    map[string]*task // nil while being created
	expected map[string]announcement
	lock     *os.File // held from the decision to end until the process has
}

// announcement is of a task that containerd is about to create.
type announcement struct {
	bundle string
	until  time.Time
}

// expectation is how long a task that was announced may take to be created.
const expectation = 30 * time.Second

func newService(g boot.Group, pub *publisher, log *slog.Logger) *Service {
	return &Service{group: g, pub: pub, log: log, done: make(chan struct{}), tasks: make(map[string]*task), expected: make(map[string]announcement)}
}

// find gives a task that was created and not deleted.
func (s *Service) find(id string) (*task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tasks[id]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
}

// claim takes an id for a task that is about to be created.
func (s *Service) claim(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock != nil {
		return fmt.Errorf("the shim is about to end: %w", errdefs.ErrUnavailable)
	}
	if _, taken := s.tasks[id]; taken {
		return fmt.Errorf("task %s: %w", id, errdefs.ErrAlreadyExists)
	}
	s.tasks[id] = nil
	delete(s.expected, id)
	return nil
}

func (s *Service) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, id)
}

// create makes a task and watches it.
func (s *Service) create(ctx context.Context, r *taskapi.CreateTaskRequest) (_ *task, retErr error) {
	if err := checkRequest(r); err != nil {
		return nil, err
	}
	if err := s.claim(r.ID); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			s.drop(r.ID)
			retErr = fmt.Errorf("create task %s: %w", r.ID, retErr)
		}
	}()
	spec, err := container.Load(r.Bundle)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	plan, err := container.NewPlan(spec)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	c, err := container.Create(ctx, plan)
	if err != nil {
		return nil, err
	}
	t := &task{id: r.ID, bundle: r.Bundle, c: c, pub: s.pub, gone: make(chan struct{}), status: tasktypes.Status_CREATED}
	s.pub.publish("/tasks/create", &events.TaskCreate{ContainerID: t.id, Bundle: t.bundle, IO: &events.TaskIO{}, Pid: uint32(c.PID)})
	s.mu.Lock()
	s.tasks[t.id] = t
	s.mu.Unlock()
	go t.watch() // ends with the container's process
	return t, nil
}

// delete removes a task and forgets it.
func (s *Service) delete(ctx context.Context, id string, force bool) (*taskapi.DeleteResponse, error) {
	t, err := s.find(id)
	if err != nil {
		return nil, err
	}
	r, err := t.remove(ctx, force)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	first := s.tasks[id] == t
	if first {
		delete(s.tasks, id)
	}
	s.mu.Unlock()
	if !first {
		return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
	}
	if err := errors.Join(t.c.Close(), boot.Deleted(t.bundle)); err != nil {
		s.log.Warn("a deleted task left something", "task", id, "error", err)
	}
	s.pub.publish("/tasks/delete", &events.TaskDelete{ContainerID: id, Pid: r.Pid, ExitStatus: r.ExitStatus, ExitedAt: r.ExitedAt})
	return r, nil
}

// expect keeps the process from ending until the task is created.
func (s *Service) expect(id, bundle string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock != nil {
		return fmt.Errorf("the shim is about to end: %w", errdefs.ErrUnavailable)
	}
	s.expected[id] = announcement{bundle, time.Now().Add(expectation)}
	return nil
}

// forget ends and deletes a task that containerd knows no longer. A task that
// is not there is none to complain of.
func (s *Service) forget(ctx context.Context, id string) (boot.Exit, error) {
	s.mu.Lock()
	delete(s.expected, id)
	s.mu.Unlock()
	r, err := s.delete(ctx, id, true)
	if errdefs.IsNotFound(err) {
		return boot.Exit{Code: boot.Killed, At: time.Now()}, nil
	}
	if err != nil {
		return boot.Exit{}, err
	}
	return boot.Exit{PID: r.Pid, Code: r.ExitStatus, At: r.ExitedAt.AsTime()}, nil
}

// endIfIdle ends the process if it has no task and none is expected. It takes
// the lock that whoever announces a task holds, so that nobody finds a process
// that is about to end.
func (s *Service) endIfIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tasks) > 0 || len(s.expected) > 0 || s.lock != nil {
		return
	}
	lock, err := s.group.Lock(false)
	if errors.Is(err, boot.ErrBusy) {
		return // somebody is about to announce a task
	}
	if err != nil {
		s.log.Error("the shim cannot end", "error", err)
		return
	}
	s.lock = lock
	if err := s.group.Retire(); err != nil {
		s.log.Warn("the shim's files stay", "error", err)
	}
	close(s.done)
}

// patrolPause is the time between two looks for what containerd has lost.
const patrolPause = 2 * time.Second

// patrol ends the tasks whose bundles are gone, and the process when there is
// nothing left to do. containerd 1.6 loses a task that it was creating when
// its own caller went away.
func (s *Service) patrol(ctx context.Context) {
	tick := time.NewTicker(patrolPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, id := range s.lost(now) {
				s.log.Warn("a task is ended, since containerd has removed its bundle", "task", id)
				fctx, cancel := context.WithTimeout(ctx, commandTimeout)
				if _, err := s.forget(fctx, id); err != nil {
					s.log.Error("a lost task cannot be ended yet", "task", id, "error", err)
				}
				cancel()
			}
			s.endIfIdle()
		}
	}
}

func (s *Service) lost(now time.Time) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, a := range s.expected {
		if now.After(a.until) || missing(a.bundle) {
			delete(s.expected, id)
		}
	}
	var ids []string
	for id, t := range s.tasks {
		if t != nil && missing(t.bundle) {
			ids = append(ids, id)
		}
	}
	return ids
}

func missing(dir string) bool {
	_, err := os.Lstat(dir)
	return errors.Is(err, os.ErrNotExist)
}
