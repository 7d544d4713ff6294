package launcher

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// watch collects children as they end, until stop. Where the function's ids are
// those of one thread alone, only that one may kill what is left of a group: then
// serve is woken by ended to do it.
func (c *child) watch() (stop func(), err error) {
	if c.ended, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("launcher: watch children: %w", err)
	}
	chld, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(chld, syscall.SIGCHLD)
	go func() {
		defer close(done)
		one := binary.NativeEndian.AppendUint64(nil, 1)
		for range chld {
			if c.pinned.Load() {
				_, _ = unix.Write(c.ended, one) // fails only when it is readable for long
			} else {
				c.reap()
			}
		}
	}()
	return func() {
		signal.Stop(chld)
		close(chld)
		<-done
		_ = unix.Close(c.ended)
	}, nil
}

// reap collects what ended. Before a process is waited for, while its id cannot
// be used again, the rest of its group is killed: a request leaves
// nothing of its group running. What has left the group goes on.
func (c *child) reap() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		pid := siginfoPID(&info)
		if err != nil || pid == 0 {
			return
		}
		c.mu.Lock()
		id, ours := c.running[pid]
		if ours {
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
		var ws syscall.WaitStatus
		_, err = syscall.Wait4(pid, &ws, 0, nil)
		delete(c.running, pid)
		delete(c.pids, id)
		c.mu.Unlock()
		if err != nil || !ours {
			continue
		}
		m := message{Op: opExited, ID: id, PID: pid, Code: ws.ExitStatus()}
		if ws.Signaled() {
			m.Signal = int(ws.Signal())
		}
		_ = c.agent.send(m)
	}
}

// killAll ends and collects every process group when the agent is gone.
func (c *child) killAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for pid := range c.running {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	for pid := range c.running {
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
}
