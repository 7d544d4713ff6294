package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// Sandbox implements runtime.Sandbox.
type Sandbox struct {
	r      *Runtime
	base   uint32   // first host id of its range
	userns *os.File // of its range, for idmapped mounts; nil after a recovery

	mu      sync.Mutex // guards what Bind changes
	info    runtime.Info
	limits  cgroups.Limits
	handles *handles       // of a blank whose launcher was admitted
	settled chan struct{}  // of a bound one: closed when containerd knows what it is
	parent  int            // pid of the launcher that was admitted to a blank, 0 for none
	freezer *cgroups.Group // group with its freezer kept open, once there is a launcher

	group cgroups.Group
	proc  *process      // nil until the task was created
	gone  chan struct{} // closed when PID 1 has ended and its exit code is known

	ending  chan struct{} // closed by the first Remove
	ended   sync.Once
	removal sync.Mutex // held by the Remove at work
	removed bool
}

var _ runtime.Sandbox = (*Sandbox)(nil)

// ID implements runtime.Sandbox.
func (s *Sandbox) ID() string { return s.info.ID }

// Info implements runtime.Sandbox.
func (s *Sandbox) Info() runtime.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// adopt makes s one of the runtime's sandboxes and watches it.
func (r *Runtime) adopt(s *Sandbox) {
	r.mu.Lock()
	r.sandboxes[s.info.ID] = s
	r.watchers.Add(1)
	r.mu.Unlock()
	if err := r.watcher.Add(s.info.ID, s.functionGroup()); err != nil {
		r.cfg.Log.Warn("no notice of OOM kills and refused forks", "sandbox", s.info.ID, "error", err)
	}
	go s.watchExit()
}

// watchExit reports the end of PID 1, once. It ends with the process or with
// the runtime.
func (s *Sandbox) watchExit() {
	defer s.r.watchers.Done()
	if err := s.proc.wait(); err != nil {
		return // the runtime is being closed
	}
	code, at, err := s.r.exitOf(s.r.life, s.info.ID)
	if err != nil {
		if s.r.life.Err() != nil {
			return
		}
		// containerd is down or has forgotten the task. That the sandbox is
		// gone is certain; how it went is not.
		code, at = runtime.ExitUnknown, time.Now()
		s.r.cfg.Log.Warn("exit code of a sandbox is unknown", "sandbox", s.info.ID, "error", err)
	}
	s.r.events.put(runtime.Event{Kind: runtime.EventExit, ID: s.info.ID, ExitCode: code, At: at})
	close(s.gone)
}

// AdmitLauncher implements runtime.Sandbox.
func (s *Sandbox) AdmitLauncher(_ context.Context, pid int) error {
	// The pid came from inside the sandbox. Without this check a rogue agent
	// could have any process of the host moved under its limits.
	in, err := s.group.Contains(cgroups.Memory, pid)
	if err != nil {
		return s.goneOr(fmt.Errorf("admit launcher: %w", err))
	}
	if !in {
		return api.Errorf(api.CodeForbidden, "admit launcher: process %d is not of sandbox %s", pid, s.info.ID)
	}
	fn := s.functionGroup()
	if err := fn.Add(pid, cgroups.Memory, cgroups.PIDs); err != nil {
		return s.goneOr(fmt.Errorf("admit launcher: %w", err))
	}
	for _, c := range []cgroups.Controller{cgroups.Memory, cgroups.PIDs} {
		in, err := fn.Contains(c, pid)
		if err != nil {
			return s.goneOr(fmt.Errorf("admit launcher: %w", err))
		}
		if !in {
			return fmt.Errorf("admit launcher: %w: process %d did not stay in %s", runtime.ErrLimits, pid, fn.Path())
		}
	}
	if err := s.keepFreezer(); err != nil {
		return s.goneOr(fmt.Errorf("admit launcher: %w", err))
	}
	if !s.Info().Blank {
		return nil
	}
	s.mu.Lock()
	s.parent = pid
	s.mu.Unlock()
	return s.takeHandles(pid)
}

// Usage implements runtime.Sandbox.
func (s *Sandbox) Usage(context.Context) (runtime.Usage, error) {
	u, err := s.group.Usage()
	if err != nil {
		return runtime.Usage{}, s.goneOr(err)
	}
	return runtime.Usage{Memory: u.Memory, MemoryPeak: u.MemoryPeak, CPU: u.CPU, Throttled: u.Throttled, PIDs: u.PIDs}, nil
}

// OOMKills implements runtime.Sandbox.
func (s *Sandbox) OOMKills(context.Context) (int64, error) {
	n, err := s.functionGroup().OOMKills()
	if err != nil {
		return 0, s.goneOr(fmt.Errorf("read OOM kills: %w", err))
	}
	return n, nil
}

// goneOr is runtime.ErrGone where err is only a sign of the sandbox's end.
func (s *Sandbox) goneOr(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("sandbox %s: %w: %w", s.info.ID, runtime.ErrGone, err)
	}
	return fmt.Errorf("sandbox %s: %w", s.info.ID, err)
}

// Remove implements runtime.Sandbox. A Remove that failed can be tried again.
func (s *Sandbox) Remove(ctx context.Context, grace time.Duration) error {
	s.removal.Lock()
	defer s.removal.Unlock()
	if s.removed {
		return nil
	}
	// A frozen process neither hears a signal nor dies of one. It may be gone.
	if err := s.frost().Thaw(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
		s.r.cfg.Log.Warn("thaw a sandbox to remove it", "sandbox", s.info.ID, "error", err)
	}
	if !s.isGone() { // else an earlier Remove may have let go of the process
		if err := s.proc.stop(ctx, grace, s.gone); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", s.info.ID, err)
		}
	}
	s.ended.Do(func() { close(s.ending) })
	s.dropHandles() // they keep the sandbox's mounts alive
	s.mu.Lock()
	settled := s.settled
	s.mu.Unlock()
	if settled != nil {
		<-settled // each of its calls has a deadline
	}
	// From here on nothing may stay half done because a caller gave up.
	ctx, cancel := cleanupContext(s.r.life, s.r.cfg.UnwindTimeout)
	defer cancel()
	select {
	case <-s.gone:
	case <-s.r.life.Done():
		return fmt.Errorf("remove sandbox %s: the runtime was closed", s.info.ID)
	case <-ctx.Done():
		return fmt.Errorf("remove sandbox %s: process %d survives SIGKILL: %w", s.info.ID, s.info.PID, ctx.Err())
	}
	if err := s.r.slots.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", s.info.ID, err)
	}
	defer s.r.slots.Release(1)
	if err := s.erase(ctx); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", s.info.ID, err)
	}
	s.r.ranges.giveBack(s.base)
	s.r.release(s.info.ID)
	s.removed = true
	return nil
}

// isGone reports whether PID 1 has ended.
func (s *Sandbox) isGone() bool {
	select {
	case <-s.gone:
		return true
	default: // also of one that is only swept
		return false
	}
}

// destroy deletes all that build and boot made, whatever of it there is, but
// the socket directory, which is the caller's where a Create failed.
func (s *Sandbox) destroy(ctx context.Context) error {
	if err := s.dismantle(ctx); err != nil {
		return err
	}
	return removeDir(s.r.dir(s.info.ID))
}

// erase is destroy for a sandbox that was there, with its socket directory: that
// goes before the record, which alone says where it is.
func (s *Sandbox) erase(ctx context.Context) error {
	if err := errors.Join(s.dismantle(ctx), removeSocketDir(s.info.SocketDir)); err != nil {
		return err
	}
	return removeDir(s.r.dir(s.info.ID))
}

// dismantle deletes all but the record and the socket directory. Each step is
// tried even if one before it failed.
func (s *Sandbox) dismantle(ctx context.Context) error {
	r, id := s.r, s.info.ID
	r.watcher.Remove(id)
	var errs []error
	s.dropHandles()
	s.frost().Release()
	if s.proc != nil && !s.isGone() {
		errs = append(errs, s.proc.signal(syscall.SIGKILL))
	}
	errs = append(errs,
		r.deleteTask(ctx, id),
		s.proc.close(),
		r.deleteContainer(ctx, id),
		s.group.Remove(ctx),
		unmountAll(r.dir(id)),
		r.deleteLease(ctx, id),
	)
	return errors.Join(errs...)
}

// unmountAll unmounts everything on and below dir, last mounted first.
func unmountAll(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", points[i], err))
		}
	}
	return errors.Join(errs...)
}
