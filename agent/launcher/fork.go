package launcher

import (
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// birth is what a child needs to become a function's process: everything is in
// place before the fork, since a child of a Go program can do nothing but make
// system calls. The child shares the launcher's memory until it executes, which
// the launcher waits for: nothing of it is copied.
type birth struct {
	files [maxFiles]int // become descriptors 0 to n-1
	n     int
	dir   *byte
	path  *byte
	argv  **byte
	env   **byte
	pid   *[pidRoom]byte // where the digits of LISTEN_PID go, in the environment; nil for none
	mask  unix.Sigset_t  // the launcher's

	caught  uint64          // signals that have a handler: bit n-1 for signal n
	handler [sigaction]byte // the default one

	errno uint32 // written by the child if it did not execute
}

const (
	// pidRoom is room for the digits of a process id and the NUL behind them.
	pidRoom     = 12
	sigsetBytes = 8  // the kernel's sigset_t
	sigaction   = 32 // the kernel's sigaction, at most
	signals     = 64
)

// forkExec starts a process in a session and group of its own. One that is handed
// a listening socket wants its process id in LISTEN_PID, which only the new
// process can know: it writes it into its environment, which saves an execution
// in between. (sd_listen_fds(3))
func (c *child) forkExec(path string, argv, env []string, dir string, files []int, listen bool) (int, error) {
	fail := func(err error) (int, error) {
		// Under the name that the descriptor has: where a PATH of the sealed
		// bundle led is not for the node, which sees this error.
		return 0, fmt.Errorf("execute %s in %s: %w", argv[0], dir, err)
	}
	b := &birth{caught: c.caught}
	// Descriptors 0 to 3 are the launcher's own, so those that came are above the
	// ones they become, and none is overwritten unused.
	b.n = copy(b.files[:], files)
	if slices.Min(files) < len(b.files) {
		return fail(unix.EBADF)
	}
	var err error
	if b.dir, err = syscall.BytePtrFromString(dir); err != nil {
		return fail(err)
	}
	if b.path, err = syscall.BytePtrFromString(path); err != nil {
		return fail(err)
	}
	args, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return fail(err)
	}
	vars, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return fail(err)
	}
	if listen {
		const name = "LISTEN_PID="
		room := make([]byte, len(name)+pidRoom)
		copy(room, name)
		b.pid = (*[pidRoom]byte)(room[len(name):])
		vars = append(vars[:len(vars)-1], &room[0], nil)
	}
	b.argv, b.env = &args[0], &vars[0]
	pid, err := b.fork()
	runtime.KeepAlive(args)
	runtime.KeepAlive(vars)
	if err != nil {
		return fail(err)
	}
	if b.errno != 0 {
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		return fail(syscall.Errno(b.errno))
	}
	return pid, nil
}

// fork makes the child and returns once it has executed or ended. No signal
// reaches it before it is another program, for its handlers are the launcher's
// and so is its memory: it inherits this thread's mask, which is filled for the
// moment, and restores it after it has taken the handlers away.
func (b *birth) fork() (int, error) {
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	runtime.LockOSThread()
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &b.mask); err != nil {
		runtime.UnlockOSThread()
		return 0, fmt.Errorf("block signals: %w", err)
	}
	pid, errno := b.run()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &b.mask, nil); err == nil {
		runtime.UnlockOSThread() // else the thread ends with this goroutine
	}
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, fmt.Errorf("fork: %w", syscall.Errno(errno))
	}
	return int(pid), nil
}

// vfork is clone(2) for a child on this stack; see its assembly.
//
//go:noescape
func vfork(flags uintptr) (pid, errno uintptr)

// run returns in the parent alone, once the child has executed or ended; the
// child never leaves this frame, which the parent leaves at once. What the child
// does must work with one thread and no scheduler: no allocation, no growth of
// the stack, no write barrier, no panic.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func (b *birth) run() (uintptr, uintptr) {
	pid, errno := vfork(unix.CLONE_VFORK | unix.CLONE_VM | uintptr(unix.SIGCHLD))
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	b.become()
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}

// become is all that the child does; it returns if it did not become the program.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func (b *birth) become() {
	_, _, errno := syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	for i := 0; i < b.n && errno == 0; i++ {
		_, _, errno = syscall.RawSyscall(unix.SYS_DUP3, uintptr(b.files[i&(maxFiles-1)]), uintptr(i), 0)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(b.dir)), 0, 0)
	}
	if b.pid != nil {
		pid, _, _ := syscall.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
		b.decimal(uint32(pid))
	}
	for n := uintptr(1); n <= signals && errno == 0; n++ {
		if b.caught>>(n-1)&1 != 0 {
			_, _, errno = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&b.handler)), 0, sigsetBytes, 0, 0)
		}
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&b.mask)), 0, sigsetBytes, 0, 0)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(b.path)), uintptr(unsafe.Pointer(b.argv)), uintptr(unsafe.Pointer(b.env)))
	}
	b.errno = uint32(errno)
}

// decimal writes n, which has fewer digits than there is room for.
//
//go:nosplit
//go:norace
func (b *birth) decimal(n uint32) {
	digits := 1
	for m := n; m >= 10; m /= 10 {
		digits++
	}
	for i := digits - 1; i >= 0; i-- {
		if i < pidRoom {
			b.pid[i] = byte('0' + n%10)
		}
		n /= 10
	}
}

// caughtSignals are those that this process has handlers for.
func caughtSignals() (uint64, error) {
	var caught uint64
	for n := uintptr(1); n <= signals; n++ {
		var old [sigaction / 8]uintptr // begins with the handler
		_, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, n, 0, uintptr(unsafe.Pointer(&old)), sigsetBytes, 0, 0)
		if errno != 0 {
			return 0, fmt.Errorf("read the handler of signal %d: %w", n, errno)
		}
		if old[0] > 1 { // neither SIG_DFL nor SIG_IGN
			caught |= 1 << (n - 1)
		}
	}
	return caught, nil
}
