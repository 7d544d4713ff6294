package containerd

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// handles are what Bind needs of a blank. They are taken while nothing foreign
// has run in it, so that later no path of the sandbox's has to be followed, and
// while nobody waits. Most of them keep the sandbox's mounts alive; all are
// closed with it.
type handles struct {
	mntns  *os.File // the launcher's mount namespace
	root   int      // O_PATH of where the function's root goes
	mounts prepared

	record       *os.File      // to append to
	outer, inner cgroups.Group // the sandbox's cgroup and the function's, their limits kept open
}

func (h *handles) close() {
	_ = h.mntns.Close()
	if h.record != nil {
		_ = h.record.Close() // what was written is in the file
	}
	h.outer.Release()
	h.inner.Release()
	h.mounts.close()
	if h.root >= 0 {
		_ = unix.Close(h.root)
	}
}

// takeHandles opens a blank's launcher, which is pid.
func (s *Sandbox) takeHandles(pid int) error {
	fail := func(err error) error { return s.goneOr(fmt.Errorf("take the launcher's mounts: %w", err)) }
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	if err != nil {
		return fail(err)
	}
	h := &handles{mntns: ns, root: -1, mounts: unprepared()}
	err = s.r.attach.in(ns, func() (err error) {
		how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
		if h.root, err = unix.Openat2(unix.AT_FDCWD, api.FunctionRoot, how); err != nil {
			return fmt.Errorf("open %s: %w", api.FunctionRoot, err)
		}
		h.mounts.proc, err = unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return fmt.Errorf("clone /proc: %w", err)
		}
		return nil
	})
	if err == nil {
		// The process that was opened by number was the sandbox's, not one that
		// got the number after it.
		var in bool
		if in, err = s.group.Contains("memory", pid); err == nil && !in {
			err = fmt.Errorf("process %d is not of the sandbox any more", pid)
		}
	}
	if err == nil {
		err = s.makeReady(h)
	}
	if err != nil {
		h.close()
		return fail(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handles != nil {
		h.close()
		return errors.New("the launcher was admitted already")
	}
	s.handles = h
	return nil
}

// makeReady does what Bind would have to do for any function.
func (s *Sandbox) makeReady(h *handles) (err error) {
	if err = h.mounts.prepare(s); err != nil {
		return err
	}
	if h.record, err = s.r.openRecord(s.info.ID); err != nil {
		return err
	}
	if h.outer, err = s.group.Keep(cgroups.CPU, cgroups.Memory, cgroups.PIDs); err != nil {
		return err
	}
	h.inner, err = s.functionGroup().Keep(cgroups.Memory, cgroups.PIDs)
	return err
}

// claimHandles gives the handles of a blank to the one Bind that it gets.
func (s *Sandbox) claimHandles() (*handles, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.handles
	switch {
	case !s.info.Blank:
		return nil, fmt.Errorf("bind sandbox %s: %w: it has a function already", s.info.ID, runtime.ErrUnsupported)
	case h == nil:
		return nil, fmt.Errorf("bind sandbox %s: %w: its launcher was not admitted, or a bind was tried before", s.info.ID, runtime.ErrGone)
	}
	s.handles = nil
	return h, nil
}

// dropHandles closes what no Bind claimed.
func (s *Sandbox) dropHandles() {
	s.mu.Lock()
	h := s.handles
	s.handles = nil
	s.mu.Unlock()
	if h != nil {
		h.close()
	}
}
