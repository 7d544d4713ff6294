package cgroups

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// kept are files of a group that stay open.
type kept struct {
	mu  sync.RWMutex   // held for reading while a descriptor is used
	fds map[string]int // by file name; nil once released
}

// Keep opens the files that limit or freeze the group by the given controllers,
// of which it knows CPU, Memory, PIDs and Freezer. The Group it gives does what
// g does, but by these files: one call of the kernel where a path takes three,
// and no look-up. It is for a group whose limits will be changed in a hurry, and
// is to be released. What is not there is left to the path to report.
func (g Group) Keep(controllers ...Controller) (_ Group, retErr error) {
	g.kept = &kept{fds: make(map[string]int)}
	defer func() {
		if retErr != nil {
			g.Release()
		}
	}()
	for _, c := range controllers {
		for _, name := range g.fs.keepable(c) {
			flags := unix.O_RDWR
			if name == "cgroup.events" {
				flags = unix.O_RDONLY
			}
			fd, err := open(g.file(c, name), flags)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return Group{}, fmt.Errorf("keep the files of %s open: %w", g.path, err)
			}
			g.kept.fds[name] = fd
		}
	}
	return g, nil
}

// Release closes what Keep opened. The group goes on by path. Releasing again,
// or what keeps nothing, does nothing.
func (g Group) Release() {
	if g.kept == nil {
		return
	}
	g.kept.mu.Lock()
	defer g.kept.mu.Unlock()
	for _, fd := range g.kept.fds {
		_ = unix.Close(fd) // a kernel file has nothing to flush
	}
	g.kept.fds = nil
}

// keepable are the files that a group's methods limit or freeze it by.
func (f FS) keepable(c Controller) []string {
	v2 := f.mode == V2
	switch {
	case c == CPU && v2:
		return []string{"cpu.weight", "cpu.max"}
	case c == CPU:
		return []string{"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"}
	case c == Memory && v2:
		return []string{"memory.max", "memory.swap.max"}
	case c == Memory:
		return []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swappiness"}
	case c == PIDs:
		return []string{"pids.max"}
	case c == Freezer && v2:
		return []string{"cgroup.freeze", "cgroup.events"}
	case c == Freezer:
		return []string{"freezer.state"}
	}
	return nil
}

// use calls do with the descriptor of a file that is kept, and reports whether
// it is.
func (g Group) use(name string, do func(fd int) error) (bool, error) {
	if g.kept == nil {
		return false, nil
	}
	g.kept.mu.RLock()
	defer g.kept.mu.RUnlock()
	fd, ok := g.kept.fds[name]
	if !ok {
		return false, nil
	}
	return true, do(fd)
}

// write puts value into one of the group's files, in one write as the kernel
// demands.
func (g Group) write(c Controller, name, value string) error {
	known, err := g.use(name, func(fd int) error {
		n, err := retry(func() (int, error) { return unix.Pwrite(fd, []byte(value), 0) })
		if err == nil && n != len(value) {
			err = io.ErrShortWrite
		}
		return err
	})
	if !known {
		return write(g.file(c, name), value)
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", value, &fs.PathError{Op: "write", Path: g.file(c, name), Err: err})
	}
	return nil
}

// change is write for a file that may well hold value already, and whose
// writing costs the kernel more than reading it. That is known only of a kept
// file: another is written.
func (g Group) change(c Controller, name, value string) error {
	same := false
	_, err := g.use(name, func(fd int) error {
		b, err := contentOf(fd)
		same = err == nil && string(trimLine(b)) == value
		return err
	})
	if same && err == nil {
		return nil
	}
	return g.write(c, name, value)
}

// readFile gives the content of one of the group's files.
func (g Group) readFile(c Controller, name string) (b []byte, err error) {
	known, err := g.use(name, func(fd int) (err error) { b, err = contentOf(fd); return err })
	if !known {
		return readFile(g.file(c, name))
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: g.file(c, name), Err: err}
	}
	return b, nil
}

// contentOf reads a kept file from its beginning. The kernel makes the content
// of such a file at once and gives all of it to a read that has room; they are
// a line or two long.
func contentOf(fd int) ([]byte, error) {
	b := make([]byte, 256)
	n, err := retry(func() (int, error) { return unix.Pread(fd, b, 0) })
	if err == nil && n == len(b) {
		err = io.ErrShortBuffer
	}
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}
