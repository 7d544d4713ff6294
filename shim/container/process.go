package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Wait returns the exit code of the init process once it has ended, 128 and
// the signal's number for one that a signal ended, and reaps it. It is to be
// called once.
func (c *Container) Wait() (uint32, error) {
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("wait for process %d: %w", c.PID, err)
	}
	// A pidfd becomes readable with the end of its process: waiting costs a
	// goroutine and no thread.
	var status unix.WaitStatus
	var werr error
	err = conn.Read(func(uintptr) bool {
		for {
			var pid int
			pid, werr = unix.Wait4(c.PID, &status, unix.WNOHANG, nil)
			if werr != unix.EINTR {
				return werr != nil || pid == c.PID
			}
		}
	})
	if err := errors.Join(err, werr); err != nil {
		return 0, fmt.Errorf("wait for process %d: %w", c.PID, err)
	}
	if status.Signaled() {
		return 128 + uint32(status.Signal()), nil
	}
	return uint32(status.ExitStatus()), nil
}

// ErrExited means that the init process has ended.
var ErrExited = errors.New("the process has ended")

// Signal sends a signal to the init process.
func (c *Container) Signal(sig unix.Signal) error {
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: %w", c.PID, ErrExited)
	}
	var serr error
	if err := conn.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("signal process %d: %w", c.PID, ErrExited)
	}
	if errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", c.PID, ErrExited)
	}
	if serr != nil {
		return fmt.Errorf("signal process %d: %w", c.PID, serr)
	}
	return nil
}

// removal is how long what is left of a container may take to disappear.
const removal = 5 * time.Second

// removeGroups removes groups even if ctx, for which they were made, is over.
func removeGroups(ctx context.Context, g *Groups) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removal)
	defer cancel()
	return g.Remove(ctx)
}
