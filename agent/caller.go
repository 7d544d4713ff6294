package agent

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// callerCheck is how often an invocation that takes long looks whether anybody
// still waits for it.
const callerCheck = time.Second

// onAbort says how the function's work on the invocation is ended early.
func (inv *invocation) onAbort(f func()) { inv.abort.Store(&f) }

// checkCaller ends the work on an invocation whose connection was closed: the
// function's time is the owner's to pay for. A connection of which only the
// sending half was closed still waits for its reply.
func (inv *invocation) checkCaller() {
	sc, ok := inv.conn.(syscall.Conn)
	if !ok || inv.released.Load() {
		return
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return
	}
	gone := false
	if err := rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&unix.POLLHUP != 0
	}); err != nil {
		return // released meanwhile
	}
	if !gone {
		inv.watch.Reset(callerCheck)
		return
	}
	if abort := inv.abort.Load(); abort != nil {
		(*abort)()
	}
}
