package agent

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenAbstract makes the socket that a function serves on. Its name is in the
// sandbox's own network namespace and in no file system: a path in the shared
// directory would let the host talk to the function past the seal.
func listenAbstract() (*os.File, string, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix"}) // the kernel picks a free name
	if err != nil {
		return nil, "", fmt.Errorf("listen for the function: %w", err)
	}
	defer ln.Close()
	addr := ln.Addr().String()
	f, err := ln.File()
	if err != nil {
		return nil, "", fmt.Errorf("listen for the function: %w", err)
	}
	// Ours does not block; a function's accept is to.
	if err := setBlocking(f); err != nil {
		_ = f.Close()
		return nil, "", fmt.Errorf("listen for the function: %w", err)
	}
	return f, addr, nil
}

// setBlocking makes reads and writes of f's other holders wait, as programs
// expect of what they inherit.
func setBlocking(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := rc.Control(func(fd uintptr) { set = syscall.SetNonblock(int(fd), false) }); err != nil {
		return err
	}
	return set
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
