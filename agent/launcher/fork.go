package launcher

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// birth is what a forked child needs to become a function that is handed a
// listening socket: everything is in place before the fork, since a child of a
// Go program can do nothing but make system calls.
type birth struct {
	files  [4]int // become descriptors 0 to 3
	report int    // where the errno goes if execve fails; closed by execve
	dir    *byte
	path   *byte
	argv   **byte
	env    **byte
	pid    *byte // where the digits of LISTEN_PID go, in the environment
	self   *byte // "/proc/self"
	mask   *unix.Sigset_t
	errno  *[1]uint32
}

// pidRoom is room for the digits of a process id and the NUL behind them.
const pidRoom = 12

// forkListener starts a function that is handed a listening socket. The protocol
// wants its process id in LISTEN_PID, which only the new process can know: it
// reads the link /proc/self into its environment, and saves an execution in
// between. (sd_listen_fds(3))
func (c *child) forkListener(path string, argv, env []string, dir string, files []uintptr) (int, error) {
	fail := func(err error) (int, error) { return 0, fmt.Errorf("execute %s in %s: %w", argv[0], dir, err) }
	r, w, err := os.Pipe() // both ends close with execve
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	defer w.Close()
	b := &birth{report: int(w.Fd()), self: cString("/proc/self"), errno: new([1]uint32)}
	for i, fd := range files {
		// Above the numbers they become, so that none is overwritten unused, and
		// below 64, where the kernel would enlarge the table of descriptors and
		// wait milliseconds for all processors.
		high, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 32)
		if err != nil {
			return fail(err)
		}
		defer unix.Close(high)
		b.files[i] = high
	}
	digits := make([]byte, len("LISTEN_PID=")+pidRoom)
	b.pid = &digits[copy(digits, "LISTEN_PID=")]
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
	vars = append(vars[:len(vars)-1], &digits[0], nil)
	b.argv, b.env = &args[0], &vars[0]

	pid, err := b.fork()
	runtime.KeepAlive(args)
	runtime.KeepAlive(vars)
	runtime.KeepAlive(digits)
	if err != nil {
		return fail(err)
	}
	_ = w.Close()
	var errno [4]byte
	if n, _ := r.Read(errno[:]); n > 0 {
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		if n != len(errno) {
			return fail(errors.New("it ended before it began"))
		}
		return fail(syscall.Errno(*(*uint32)(unsafe.Pointer(&errno))))
	}
	return pid, nil
}

func cString(s string) *byte { b := append([]byte(s), 0); return &b[0] }

// fork makes the child. No signal reaches it before it is another program: it
// inherits this thread's mask, which is filled for the moment, and restores it.
func (b *birth) fork() (int, error) {
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	runtime.LockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	b.mask = &before
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		runtime.UnlockOSThread()
		return 0, fmt.Errorf("block signals: %w", err)
	}
	pid, errno := b.run()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err == nil {
		runtime.UnlockOSThread() // else the thread ends with this goroutine
	}
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, fmt.Errorf("fork: %w", errno)
	}
	return int(pid), nil
}

// run returns in the parent alone, once the child has executed or ended. What
// the child does must work with one thread and no scheduler: no allocation, no
// growth of the stack, no write barrier, no panic.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func (b *birth) run() (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.CLONE_VFORK|unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	for i := 0; i < len(b.files) && errno == 0; i++ {
		_, _, errno = syscall.RawSyscall(unix.SYS_DUP3, uintptr(b.files[i]), uintptr(i), 0)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(b.dir)), 0, 0)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall6(unix.SYS_READLINKAT, atCWD, uintptr(unsafe.Pointer(b.self)), uintptr(unsafe.Pointer(b.pid)), pidRoom-1, 0, 0)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(b.mask)), 0, sigsetBytes, 0, 0)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(b.path)), uintptr(unsafe.Pointer(b.argv)), uintptr(unsafe.Pointer(b.env)))
	}
	b.errno[0] = uint32(errno)
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(b.report), uintptr(unsafe.Pointer(b.errno)), 4)
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}

const (
	atCWD       = ^uintptr(99) // AT_FDCWD, -100
	sigsetBytes = 8            // the kernel's sigset_t
)
