package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/faasd-sec/faasd-sec/shim/container"
)

// task is one container of the shim.
type task struct {
	id     string
	bundle string
	c      *container.Container
	pub    *publisher
	gone   chan struct{} // closed when the init process was reaped

	mu     sync.Mutex // held while the task changes from one state to another
	status tasktypes.Status
	code   uint32
	at     time.Time
}

// watch waits for the end of the init process. It ends with it.
func (t *task) watch() {
	code, err := t.c.Wait()
	if err != nil {
		code = 255 // it is over, and nobody can say how
	}
	t.mu.Lock()
	t.status, t.code, t.at = tasktypes.Status_STOPPED, code, time.Now()
	t.pub.publish("/tasks/exit", &events.TaskExit{
		ContainerID: t.id, ID: t.id, Pid: uint32(t.c.PID), ExitStatus: code, ExitedAt: timestamppb.New(t.at),
	})
	t.mu.Unlock()
	close(t.gone)
}

func (t *task) state() *taskapi.StateResponse {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := &taskapi.StateResponse{ID: t.id, Bundle: t.bundle, Pid: uint32(t.c.PID), Status: t.status}
	if t.status == tasktypes.Status_STOPPED {
		r.ExitStatus, r.ExitedAt = t.code, timestamppb.New(t.at)
	}
	return r
}

func (t *task) start(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status != tasktypes.Status_CREATED {
		return fmt.Errorf("start task %s, which is %v: %w", t.id, t.status, errdefs.ErrFailedPrecondition)
	}
	if err := t.c.Start(ctx); err != nil {
		return fmt.Errorf("start task %s: %w", t.id, err)
	}
	t.status = tasktypes.Status_RUNNING
	t.pub.publish("/tasks/start", &events.TaskStart{ContainerID: t.id, Pid: uint32(t.c.PID)})
	return nil
}

// freeze stops or resumes all processes of the task.
func (t *task) freeze(ctx context.Context, frozen bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	from, to := tasktypes.Status_RUNNING, tasktypes.Status_PAUSED
	set, topic, event := t.c.Groups.Freeze, "/tasks/paused", any(&events.TaskPaused{ContainerID: t.id})
	if !frozen {
		from, to = to, from
		set, topic, event = t.c.Groups.Thaw, "/tasks/resumed", &events.TaskResumed{ContainerID: t.id}
	}
	if t.status != from {
		return fmt.Errorf("task %s is %v: %w", t.id, t.status, errdefs.ErrFailedPrecondition)
	}
	if err := set(ctx); err != nil {
		return fmt.Errorf("task %s: %w", t.id, err)
	}
	t.status = to
	t.pub.publish(topic, event)
	return nil
}

// end kills the init process. On cgroup v1 one that is frozen does not die before
// it is thawed, whoever froze it.
func (t *task) end(ctx context.Context) error {
	if err := t.c.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := t.c.Groups.Thaw(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// kill signals the init process, or all of the task's.
func (t *task) kill(ctx context.Context, sig unix.Signal, all bool) error {
	var err error
	if sig == unix.SIGKILL {
		err = t.end(ctx)
	} else {
		err = t.c.Signal(sig)
	}
	if errors.Is(err, container.ErrExited) {
		return fmt.Errorf("kill task %s: %w: %w", t.id, errdefs.ErrNotFound, err)
	}
	// The kernel ends the whole pid namespace with its init process.
	if err != nil || !all || sig == unix.SIGKILL {
		return err
	}
	pids, err := t.c.Groups.Processes()
	if err != nil {
		return fmt.Errorf("kill task %s: %w", t.id, err)
	}
	for _, pid := range pids {
		if pid == t.c.PID {
			continue
		}
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d of task %s: %w", pid, t.id, err)
		}
	}
	return nil
}

// graceAfterKill is how long the deletion of a running task waits for its end:
// whoever has just killed it may be ahead of the kernel.
const graceAfterKill = 2 * time.Second

// remove deletes a task that has ended, or was never started; with force, any.
func (t *task) remove(ctx context.Context, force bool) (*taskapi.DeleteResponse, error) {
	t.mu.Lock()
	waiting := t.status == tasktypes.Status_CREATED
	t.mu.Unlock()
	if waiting || force {
		if err := t.end(ctx); err != nil && !errors.Is(err, container.ErrExited) {
			return nil, fmt.Errorf("delete task %s: %w", t.id, err)
		}
	}
	select {
	case <-t.gone:
	case <-ctx.Done():
		return nil, fmt.Errorf("delete task %s: %w", t.id, ctx.Err())
	case <-time.After(graceAfterKill):
		return nil, fmt.Errorf("delete task %s, whose process %d still runs: %w", t.id, t.c.PID, errdefs.ErrFailedPrecondition)
	}
	if err := t.c.Groups.Remove(ctx); err != nil {
		return nil, fmt.Errorf("delete task %s: %w", t.id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r := &taskapi.DeleteResponse{Pid: uint32(t.c.PID), ExitStatus: t.code, ExitedAt: timestamppb.New(t.at)}
	return r, nil
}
