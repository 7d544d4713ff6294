package boot

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Group names the one process that serves all tasks of a containerd namespace.
type Group struct {
	Address   string // of containerd, which tells its namespaces from another's
	Namespace string
	Dir       string // where the sockets of all groups are, for root alone
}

// DefaultDir is where sockets are.
const DefaultDir = "/run/faasd-sec-shim"

// path is the name of the group's files, without their endings. Names of any
// length must fit into the 107 bytes of a socket's address.
func (g Group) path(ending string) string {
	h := fnv.New128a()
	_, _ = h.Write([]byte(g.Address + "\x00" + g.Namespace)) // a hash takes everything
	return filepath.Join(g.Dir, hex.EncodeToString(h.Sum(nil))+ending)
}

// TaskSocket is where the group's process serves containerd's task API.
func (g Group) TaskSocket() string { return g.path(".sock") }

// ControlSocket is where it serves the commands of this package.
func (g Group) ControlSocket() string { return g.path(".ctl") }

// URL is the task socket the way containerd writes it.
func (g Group) URL() string { return "unix://" + g.TaskSocket() }

// ErrBusy means that another process holds the group's lock.
var ErrBusy = errors.New("the group is locked")

// Lock keeps others from starting or ending the group's process until the file
// is closed. With wait false it gives ErrBusy where it would have to wait.
func (g Group) Lock(wait bool) (*os.File, error) {
	if err := os.MkdirAll(g.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock the shim: %w", err)
	}
	for {
		f, err := lockFile(g.path(".lock"), wait)
		if err != nil {
			return nil, fmt.Errorf("lock the shim: %w", err)
		}
		// Whoever had it before may have removed it: then it locks nothing.
		same, err := isAt(f, g.path(".lock"))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock the shim: %w", err), f.Close())
		}
		if same {
			return f, nil
		}
		_ = f.Close()
	}
}

func lockFile(path string, wait bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	err = retry(func() error { return unix.Flock(int(f.Fd()), how) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// isAt reports whether an open file is the one at path.
func isAt(f *os.File, path string) (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(open, there), err
}

// Retire makes the process unreachable and removes the group's files. The lock
// must be held, and is until the process has ended.
func (g Group) Retire() error {
	err := g.removeSockets()
	if lerr := os.Remove(g.path(".lock")); lerr != nil && !errors.Is(lerr, os.ErrNotExist) {
		err = errors.Join(err, lerr)
	}
	return err
}

// Bury removes the files of a process that was killed, which nobody else would
// where no task comes after. It leaves those of one that serves, or is about to.
func (g Group) Bury() error {
	lock, err := g.Lock(false)
	if errors.Is(err, ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	fd, err := g.connect(forgetTimeout)
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, errNone) {
		return err
	}
	return g.Retire()
}

func (g Group) removeSockets() error {
	var errs []error
	for _, path := range []string{g.ControlSocket(), g.TaskSocket()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// listen makes one of the group's sockets.
func listen(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), f.Close())
	}
	return f, nil
}
