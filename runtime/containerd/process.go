package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a sandbox's PID 1 by pidfd: signals reach it and nothing else,
// and its end is seen without containerd, which may be restarting.
type process struct {
	file *os.File
}

func openProcess(pid int) (*process, error) {
	// Non-blocking puts it into the Go runtime's poller: waiting costs a
	// goroutine, not a thread.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &process{file: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns nil once the process has ended, and an error if it was
// interrupted.
func (p *process) wait() error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	if err := conn.Read(func(fd uintptr) bool { return ended(int(fd)) }); err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	return nil
}

// ended reports whether the process of a pidfd is over: then it can be read.
func ended(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1
}

// interrupt ends every wait, now and later.
func (p *process) interrupt() {
	if p != nil {
		_ = p.file.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed file, which ends waits as well
	}
}

func (p *process) close() error {
	if p == nil {
		return nil
	}
	if err := p.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close process: %w", err)
	}
	return nil
}

// signal sends sig; a process that has ended is no error.
func (p *process) signal(sig syscall.Signal) error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	var serr error
	if err := conn.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	if serr != nil && !errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("send %v: %w", sig, serr)
	}
	return nil
}

// stop ends the process: SIGTERM, then SIGKILL after grace, which also ends
// everything else in its pid namespace.
func (p *process) stop(ctx context.Context, grace time.Duration, gone <-chan struct{}) error {
	if grace > 0 {
		if err := p.signal(syscall.SIGTERM); err != nil {
			return err
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-gone:
			return nil
		case <-timer.C:
		case <-ctx.Done(): // no time for grace
		}
	}
	return p.signal(syscall.SIGKILL)
}
