package agent

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenAbstract makes the socket that a function serves on. Its name is in the
// sandbox's own network namespace and in no file system: a path in the shared
// directory would let the host talk to the function past the seal. It is made
// for the function alone, so it blocks, and the runtime's poller never sees it.
func listenAbstract() (*os.File, string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("listen for the function: %w", err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	addr, err := bindAbstract(fd)
	if err != nil {
		_ = f.Close()
		return nil, "", fmt.Errorf("listen for the function: %w", err)
	}
	return f, addr, nil
}

// listenBacklog is how many connections wait for the function's accept; the
// kernel allows no more than net.core.somaxconn.
const listenBacklog = 4096

func bindAbstract(fd int) (string, error) {
	if err := unix.Bind(fd, &unix.SockaddrUnix{}); err != nil { // the kernel picks a free name
		return "", err
	}
	if err := unix.Listen(fd, listenBacklog); err != nil {
		return "", err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	u, ok := sa.(*unix.SockaddrUnix)
	if !ok || u.Name == "" {
		return "", fmt.Errorf("it has no name: %v", sa)
	}
	return u.Name, nil
}

// pipeTo makes a pipe between us and a process: stdin for in, else one of its
// outputs. Our end waits in the runtime's poller and can be closed under a
// reader; the process's end blocks.
func pipeTo(in bool) (ours, theirs *os.File, err error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	mine, other := p[0], p[1]
	if in {
		mine, other = p[1], p[0]
	}
	if err := syscall.SetNonblock(mine, true); err != nil {
		_, _ = syscall.Close(mine), syscall.Close(other)
		return nil, nil, err
	}
	return os.NewFile(uintptr(mine), "pipe"), os.NewFile(uintptr(other), "pipe"), nil
}

// pipeBuffered is the number of bytes that wait in a pipe.
func pipeBuffered(f *os.File) int {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	if err := rc.Control(func(fd uintptr) {
		if got, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			n = got
		}
	}); err != nil {
		return 0
	}
	return n
}
