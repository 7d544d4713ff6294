package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// mark is in the environment of programs that a manager runs, with its directory.
const mark = "FAASD_SEC_NETWORK="

// settle ends the plugins and programs that still work on an attachment for a
// manager that is no more, or after their deadline: what they made next would
// be found by nobody. The plugins' own children are among them.
func (m *Manager) settle(ctx context.Context, ids ...string) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadline)
	defer cancel()
	ours := map[string]bool{}
	for _, id := range ids {
		ours["CNI_CONTAINERID="+id] = true
	}
	if len(ids) == 0 {
		return nil
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := m.endOrphans(ours)
		if err != nil {
			return fmt.Errorf("network: end orphans: %w", err)
		}
		if n == 0 {
			return nil
		}
		select {
		case <-tick.C: // until the kernel has taken them away
		case <-ctx.Done():
			return fmt.Errorf("network: end orphans: %w", ctx.Err())
		}
	}
}

// endOrphans kills what it finds, and says how many that was.
func (m *Manager) endOrphans(ours map[string]bool) (int, error) {
	user, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return 0, err
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	found := 0
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		is, err := m.isOrphan(pid, user, ours)
		if err != nil {
			return 0, err
		}
		if !is {
			continue
		}
		found++
		// Looked at again with the process held: its number may be another's by now.
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return 0, err
		}
		is, err = m.isOrphan(pid, user, ours)
		if err == nil && is {
			if err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); errors.Is(err, unix.ESRCH) {
				err = nil
			}
		}
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return 0, err
		}
	}
	return found, nil
}

// isOrphan tells by the environment. What runs in a sandbox may have any, and
// is in another user namespace.
func (m *Manager) isOrphan(pid int, user string, ours map[string]bool) (bool, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	env, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return false, ended(err)
	}
	match := false
	for _, e := range bytes.Split(env, []byte{0}) {
		match = match || ours[string(e)] || string(e) == mark+m.cfg.Dir
	}
	if !match {
		return false, nil
	}
	u, err := os.Readlink(filepath.Join(dir, "ns", "user"))
	if err != nil {
		return false, ended(err)
	}
	return u == user, nil
}

// ended is nil where the error is that a process is gone or going.
func ended(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}
