package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

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
	sum := sha256.Sum256([]byte(g.Address + "\x00" + g.Namespace))
	return filepath.Join(g.Dir, hex.EncodeToString(sum[:12])+ending)
}

func (g Group) socket() string { return g.path(".sock") }

// URL is the group's socket the way containerd writes it.
func (g Group) URL() string { return "unix://" + g.socket() }

// errBusy means that another process holds the group's lock.
var errBusy = errors.New("the group is locked")

// lock keeps others from starting or ending the group's process until the file
// is closed. With wait false it gives errBusy where it would have to wait.
func (g Group) lock(wait bool) (*os.File, error) {
	if err := os.MkdirAll(g.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock the shim: %w", err)
	}
	f, err := os.OpenFile(g.path(".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the shim: %w", err)
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errBusy
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the shim: %w", err), f.Close())
	}
	return f, nil
}

// dialTimeout is how long a connection to a process of this machine may take.
const dialTimeout = 5 * time.Second

// dial connects to the group's process. errors.Is(err, errNone) means that
// there is none.
func (g Group) dial() (net.Conn, error) {
	c, err := net.DialTimeout("unix", g.socket(), dialTimeout)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNone
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the shim: %w", err)
	}
	return c, nil
}

var errNone = errors.New("no shim serves this namespace")

// listen makes the group's socket anew. The lock must be held.
func (g Group) listen() (*net.UnixListener, error) {
	if err := os.Remove(g.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: g.socket()})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// The socket stays when this process, which only starts the other, ends.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(g.socket(), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), l.Close())
	}
	return l, nil
}
