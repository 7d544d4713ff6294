package network

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mark is in the environment of what a manager runs: as a variable of its own,
// and of plugins, whose environment is the library's, among their arguments.
const mark = "FAASD_SEC_NETWORK"

// markOf tells managers apart by their directories.
func markOf(dir string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(dir)))[:32] }

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
// may make reading it wait; it is in another user namespace, which is looked at
// first.
func (m *Manager) isOrphan(pid int, user string, ours map[string]bool) (bool, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	u, err := os.Readlink(filepath.Join(dir, "ns", "user"))
	if err != nil {
		return false, ended(err)
	}
	if u != user {
		return false, nil
	}
	env, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return false, ended(err)
	}
	id, marked := false, false
	for _, e := range strings.Split(string(env), "\x00") {
		if e == mark+"="+m.mark {
			return true, nil
		}
		args, is := strings.CutPrefix(e, "CNI_ARGS=")
		marked = marked || is && strings.Contains(args, mark+"="+m.mark)
		id = id || ours[e]
	}
	return id && marked, nil
}

// ended is nil where the error is that a process is gone or going.
func ended(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}
