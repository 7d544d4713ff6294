package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace held open, so that what its path names
// cannot change below the plugins.
type namespace struct {
	file   *os.File
	cookie uint64
}

// openNamespace opens what path names. The host's own is refused: plugins
// would rename, address and delete the machine's interfaces.
func (m *Manager) openNamespace(path string) (*namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network: open namespace: %w", err)
	}
	n := &namespace{file: f}
	err = n.do(func() error {
		n.cookie, err = cookie()
		return err
	})
	if err == nil && n.cookie == m.cookie {
		err = fmt.Errorf("%s is the network namespace of the host", path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network: %w", err), f.Close())
	}
	return n, nil
}

// path is what other processes reach the namespace by while it is held open.
func (n *namespace) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

func (n *namespace) close() error { return n.file.Close() }

// do runs f on a thread inside the namespace.
func (n *namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer back.Close()
		if err = unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter network namespace: %w", err)
		} else {
			err = f()
		}
		// A thread that cannot be brought back stays locked and ends here: no
		// other code may run on it.
		if e := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); e != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", e))
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// cookie is the kernel's name for the calling thread's network namespace, which
// unlike an inode number or a process id is not used again.
func cookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("identify network namespace: %w", err)
	}
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return 0, fmt.Errorf("identify network namespace: %w", err)
	}
	return c, nil
}

// withoutIPv6 has interfaces that are made from now on in the namespace begin
// without IPv6. The loopback keeps its own.
func (n *namespace) withoutIPv6() error {
	return n.do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, os.ErrNotExist) { // a kernel without it
			return nil
		}
		return err
	})
}

// checkNoIPv6 reads back that the sandbox's interface has it off.
func (n *namespace) checkNoIPv6() error {
	return n.do(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + inside + "/disable_ipv6")
		if errors.Is(err, os.ErrNotExist) {
			if _, err := os.Stat("/proc/sys/net/ipv6"); errors.Is(err, os.ErrNotExist) {
				return nil
			}
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(b)) != "1" {
			return errors.New("IPv6 is on in the sandbox")
		}
		return nil
	})
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("network: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
