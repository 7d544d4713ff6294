package stage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Child is a process that runs a program, or did until it became another.
type Child struct {
	PID   int
	PIDFD int // owned by whoever called Start

	control *os.File
	what    []string
}

// cloneArgs is struct clone_args of linux/sched.h.
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// Start runs the program in a new process with the namespaces in flags
// (unix.CLONE_NEW*). If cgroup is not negative it is a directory of the v2
// hierarchy that the process begins in.
func (p *Program) Start(flags uint64, cgroup int) (*Child, error) {
	if len(p.calls) == 0 {
		return nil, errors.New("start init process: the program is empty")
	}
	pidfd := new(int32)
	args := &cloneArgs{
		// Handlers are reset in the child: those of Go must not run there.
		flags: flags | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND,
		pidFD: uint64(uintptr(unsafe.Pointer(pidfd))), exitSignal: uint64(unix.SIGCHLD),
	}
	// Kept by the program, both are in the heap: their addresses are final.
	p.keep = append(p.keep, pidfd, args)
	if cgroup >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(cgroup)
	}
	control := p.controlFD().value

	// No signal may reach the child before it is another program: it inherits
	// the mask of this thread, which is therefore filled for the moment.
	runtime.LockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("start init process: block signals: %w", err)
	}
	pid, errno := cloneAndRun(args, &p.calls[0], uintptr(len(p.calls)), p.regs, p.report, control)
	err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	if err == nil {
		// A thread whose mask could not be restored ends with this goroutine.
		runtime.UnlockOSThread()
	}
	runtime.KeepAlive(args)
	runtime.KeepAlive(pidfd)
	runtime.KeepAlive(p)
	if errno != 0 {
		return nil, fmt.Errorf("start init process: clone3: %w", errno)
	}
	_ = p.control.Close()
	c := &Child{PID: int(pid), PIDFD: int(*pidfd), control: p.parent, what: p.what}
	p.control, p.parent, p.keep = nil, nil, nil
	return c, nil
}

// cloneAndRun makes the child and, in it, runs the calls; it returns in the
// parent alone. Everything here must work in a process that has one thread of
// a Go program and no scheduler: no allocation, no growth of the stack, no
// write barrier, no panic.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func cloneAndRun(args *cloneArgs, first *call, n uintptr, regs *[registers]uintptr, report *[2]uint32, control uintptr) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for i := uintptr(0); i < n; i++ {
		c := (*call)(unsafe.Add(unsafe.Pointer(first), i*unsafe.Sizeof(call{})))
		var a [6]uintptr
		for j := 0; j < 6; j++ {
			a[j] = c.args[j]
			if c.from>>j&1 != 0 {
				a[j] = regs[a[j]&(registers-1)]
			}
		}
		result, _, errno := syscall.RawSyscall6(c.number, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno == 0 && c.exactly >= 0 && result != uintptr(c.exactly) {
			errno = syscall.EPIPE
		}
		if errno == 0 {
			if c.into >= 0 {
				regs[uint8(c.into)&(registers-1)] = result
			}
			i += uintptr(c.skip)
			continue
		}
		accepted := false
		for j := 0; j < accepts; j++ {
			if c.accept[j].errno == uint32(errno) {
				accepted = true
				i += uintptr(c.accept[j].skip)
				break
			}
		}
		if accepted {
			continue
		}
		report[0], report[1] = uint32(i), uint32(errno)
		_, _, _ = syscall.RawSyscall6(unix.SYS_WRITE, control, uintptr(unsafe.Pointer(report)), recordSize, 0, 0, 0)
		break
	}
	// A program that does not end in execve, or that failed.
	for {
		_, _, _ = syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 127, 0, 0, 0, 0, 0)
	}
}

// Failure is a call of the child that failed.
type Failure struct {
	What  string
	Errno unix.Errno
}

func (f *Failure) Error() string { return fmt.Sprintf("in the sandbox: %s: %v", f.What, f.Errno) }

// Unwrap gives the error number.
func (f *Failure) Unwrap() error { return f.Errno }

// ErrEnded means that the child ended, or became its program, where more was
// expected of it.
var ErrEnded = errors.New("the init process has ended")

// Proceed ends the child's present Wait.
func (c *Child) Proceed() error {
	if _, err := c.control.Write([]byte{1}); err != nil {
		return fmt.Errorf("tell the init process to go on: %w", err)
	}
	return nil
}

// AwaitReady returns once the child has said that it is ready. A *Failure is
// the call that it failed at instead.
func (c *Child) AwaitReady(ctx context.Context) error {
	more, err := c.receive(ctx)
	if err == nil && !more {
		err = ErrEnded
	}
	return err
}

// AwaitExec returns once the child has become its program, or has ended. A
// *Failure is the call that it failed at instead.
func (c *Child) AwaitExec(ctx context.Context) error {
	more, err := c.receive(ctx)
	if err == nil && more {
		err = errors.New("the init process is ready twice")
	}
	return err
}

// receive gives the next message: true for ready, false for the end.
func (c *Child) receive(ctx context.Context) (bool, error) {
	// A deadline in the past ends the read when ctx does.
	stop := context.AfterFunc(ctx, func() { _ = c.control.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [recordSize]byte
	n, err := c.control.Read(b[:])
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return false, nil
	case err != nil && ctx.Err() != nil:
		return false, fmt.Errorf("wait for the init process: %w", ctx.Err())
	case err != nil:
		return false, fmt.Errorf("wait for the init process: %w", err)
	case n != recordSize:
		return false, fmt.Errorf("wait for the init process: a message of %d bytes", n)
	}
	at, errno := binary.NativeEndian.Uint32(b[:]), binary.NativeEndian.Uint32(b[4:])
	if at == ready {
		return true, nil
	}
	if int(at) >= len(c.what) {
		return false, fmt.Errorf("wait for the init process: it failed at call %d of %d", at, len(c.what))
	}
	return false, &Failure{What: c.what[at], Errno: unix.Errno(errno)}
}

// Close ends the connection to the child: one that has not become its program
// yet ends.
func (c *Child) Close() error {
	if err := c.control.Close(); err != nil {
		return fmt.Errorf("close the connection to the init process: %w", err)
	}
	return nil
}
