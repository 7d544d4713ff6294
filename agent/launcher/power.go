package launcher

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// threads lists the threads of this process. It is opened before the root
// changes, so that it lists them whatever the function's /proc is.
type threads struct {
	dir int
	buf []byte
}

func openThreads() (*threads, error) {
	dir, err := unix.Open("/proc/self/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("list threads: %w", err)
	}
	return &threads{dir: dir, buf: make([]byte, 4096)}, nil
}

func (t *threads) close() { _ = unix.Close(t.dir) }

// list gives the ids of all threads.
func (t *threads) list() ([]int, error) {
	if _, err := unix.Seek(t.dir, 0, 0); err != nil {
		return nil, fmt.Errorf("list threads: %w", err)
	}
	var names []string
	for {
		n, err := unix.ReadDirent(t.dir, t.buf)
		if err != nil {
			return nil, fmt.Errorf("list threads: %w", err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(t.buf[:n], -1, names)
	}
	ids := make([]int, len(names))
	for i, name := range names {
		var err error
		if ids[i], err = strconv.Atoi(name); err != nil {
			return nil, fmt.Errorf("list threads: %w", err)
		}
	}
	if len(ids) == 0 {
		return nil, errors.New("list threads: there is none")
	}
	return ids, nil
}

// checkPowerless refuses to run with a capability, on any thread: nothing the
// agent does wrong may hand one to a function. Only this thread may have those in
// own, and must have all of them.
func (t *threads) checkPowerless(own uint32) error {
	ids, err := t.list()
	if err != nil {
		return err
	}
	self, seen := unix.Gettid(), false
	for _, tid := range ids {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(tid)}
		var have [2]unix.CapUserData
		switch err := unix.Capget(&hdr, &have[0]); {
		case err == unix.ESRCH && tid != self:
			continue // it has ended meanwhile
		case err != nil:
			return fmt.Errorf("read the capabilities of thread %d: %w", tid, err)
		}
		var want [2]unix.CapUserData
		if tid == self {
			seen = true
			want[0] = unix.CapUserData{Effective: own, Permitted: own}
		}
		if have != want {
			return fmt.Errorf("thread %d has other capabilities than it must have", tid)
		}
	}
	if !seen {
		return errors.New("list threads: this one is not among them")
	}
	if os.Geteuid() == 0 || os.Getegid() == 0 {
		return errors.New("it was started as root; a function never runs as root")
	}
	return nil
}
