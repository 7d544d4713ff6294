package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call makes a raw system call and turns its errno into an error. Arguments
// that would be wrong anyway give EFAULT or EINVAL where the call itself is
// allowed, so only errors that deny count as denial.
func call(nr uintptr, a ...uintptr) error {
	var v [6]uintptr
	copy(v[:], a)
	_, _, errno := unix.RawSyscall6(nr, v[0], v[1], v[2], v[3], v[4], v[5])
	switch errno {
	case unix.EPERM, unix.EACCES, unix.ENOSYS:
		return errno
	}
	return nil // it ran, whatever came of it
}

func kernelAttempts() []attempt {
	path := func(s string) uintptr { b, _ := unix.BytePtrFromString(s); return uintptr(unsafe.Pointer(b)) }
	return []attempt{
		{"bpf", func() error { return call(unix.SYS_BPF, 0, 0, 0) }},
		{"perf_event_open", func() error { return call(unix.SYS_PERF_EVENT_OPEN, 0, 0, ^uintptr(0), ^uintptr(0), 0) }},
		{"userfaultfd", func() error { return call(unix.SYS_USERFAULTFD, 1) }},
		{"io_uring_setup", func() error { return call(unix.SYS_IO_URING_SETUP, 1, 0) }},
		{"io_uring_enter", func() error { return call(unix.SYS_IO_URING_ENTER, 0, 0, 0, 0, 0, 0) }},
		{"keyctl", func() error { return call(unix.SYS_KEYCTL, 0, ^uintptr(2), 0) }},
		{"add_key", func() error { return call(unix.SYS_ADD_KEY, 0, 0, 0, 0, 0) }},
		{"request_key", func() error { return call(unix.SYS_REQUEST_KEY, 0, 0, 0, 0) }},
		{"init_module", func() error { return call(unix.SYS_INIT_MODULE, 0, 0, path("")) }},
		{"finit_module", func() error { return call(unix.SYS_FINIT_MODULE, ^uintptr(0), path(""), 0) }},
		{"delete_module", func() error { return call(unix.SYS_DELETE_MODULE, path("none"), unix.O_NONBLOCK) }},
		{"kexec_load", func() error { return call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0) }},
		{"reboot", func() error {
			return call(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF, 0)
		}},
		{"swapon", func() error { return call(unix.SYS_SWAPON, path("/tmp/none"), 0) }},
		{"swapoff", func() error { return call(unix.SYS_SWAPOFF, path("/tmp/none")) }},
		{"acct", func() error { return call(unix.SYS_ACCT, path("/tmp/none")) }},
		{"quotactl", func() error { return call(unix.SYS_QUOTACTL, 0, 0, 0, 0) }},
		{"syslog", func() error { return call(unix.SYS_SYSLOG, 10, 0, 0) }},
		{"clock_settime", func() error {
			var now unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
				return err
			}
			return call(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&now)))
		}},
		{"settimeofday", func() error { return call(unix.SYS_SETTIMEOFDAY, 0, 0) }},
		{"adjtimex", func() error { return call(unix.SYS_ADJTIMEX, 0) }},
		{"sethostname", func() error { return call(unix.SYS_SETHOSTNAME, path("x"), 1) }},
		{"setdomainname", func() error { return call(unix.SYS_SETDOMAINNAME, path("x"), 1) }},
		{"unshare_user", func() error { return call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) }},
		{"unshare_mount", func() error { return call(unix.SYS_UNSHARE, unix.CLONE_NEWNS) }},
		{"unshare_net", func() error { return call(unix.SYS_UNSHARE, unix.CLONE_NEWNET) }},
		{"clone_newuser", func() error { return cloneInto(unix.CLONE_NEWUSER) }},
		{"clone_newns", func() error { return cloneInto(unix.CLONE_NEWNS) }},
		{"clone_newnet", func() error { return cloneInto(unix.CLONE_NEWNET) }},
		{"clone3", func() error { return call(unix.SYS_CLONE3, 0, 0) }},
		{"setns", func() error {
			fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return call(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNET)
		}},
		{"capset_sys_admin", raiseCapability},
		{"int80_syscall", func() error { return inChild("int80") }},
	}
}

// cloneInto starts a child in new namespaces.
func cloneInto(flags uintptr) error {
	cmd := exec.Command("/proc/self/exe", "-child=nothing")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	return cmd.Run()
}

// inChild runs an attempt that may be answered with a deadly signal.
func inChild(what string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/proc/self/exe", "-child="+what).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w %.80s", err, out)
	}
	return nil
}

// child is what inChild runs; exit code 0 means that the attempt succeeded.
func child(what string) {
	switch what {
	case "nothing":
	case "int80":
		// Seccomp kills the one thread that calls by the 32-bit entry.
		done := make(chan int32, 1)
		go func() { done <- legacyGetpid() }()
		select {
		case pid := <-done:
			if pid <= 0 {
				os.Exit(1)
			}
		case <-time.After(2 * time.Second):
			os.Exit(1)
		}
	case "whoami": // run as the set-user-id copy
		if os.Geteuid() != 0 {
			os.Exit(1)
		}
	case "trace":
		if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0, 0, 0, 0); errno != 0 {
			os.Exit(1)
		}
	default:
		os.Exit(2)
	}
}

func raiseCapability() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	data[0].Effective, data[0].Permitted, data[0].Inheritable = 1<<unix.CAP_SYS_ADMIN, 1<<unix.CAP_SYS_ADMIN, 0
	return unix.Capset(&hdr, &data[0])
}
