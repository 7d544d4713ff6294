package containerd

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// handles are what Bind needs of a blank. They are taken while nothing foreign
// has run in it, so that later no path of the sandbox's has to be followed. Each
// of them keeps the sandbox's mounts alive and is closed with it.
type handles struct {
	mntns *os.File // the launcher's mount namespace
	root  int      // O_PATH of where the function's root goes
	proc  int      // detached clone of the launcher's /proc, with its masks
}

func (h *handles) close() {
	_ = h.mntns.Close()
	for _, fd := range []int{h.root, h.proc} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// takeHandles opens a blank's launcher, which is pid.
func (s *Sandbox) takeHandles(pid int) error {
	fail := func(err error) error { return s.goneOr(fmt.Errorf("take the launcher's mounts: %w", err)) }
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	if err != nil {
		return fail(err)
	}
	h := &handles{mntns: ns, root: -1, proc: -1}
	err = s.r.attach.in(ns, func() (err error) {
		how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
		if h.root, err = unix.Openat2(unix.AT_FDCWD, api.FunctionRoot, how); err != nil {
			return fmt.Errorf("open %s: %w", api.FunctionRoot, err)
		}
		h.proc, err = unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
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
