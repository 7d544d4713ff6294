package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

func processAttempts(t targets) []attempt {
	host := strconv.Itoa(t.hostPID)
	var buf [8]byte
	iov := unix.Iovec{Base: &buf[0], Len: 8}
	peek := func(nr uintptr, pid int) error {
		return call(nr, uintptr(pid), uintptr(unsafe.Pointer(&iov)), 1, uintptr(unsafe.Pointer(&iov)), 1, 0)
	}
	return []attempt{
		{"ptrace_attach_agent", func() error { return call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1, 0, 0) }},
		{"ptrace_traceme", func() error { return inChild("trace") }},
		{"process_vm_readv_agent", func() error { return peek(unix.SYS_PROCESS_VM_READV, 1) }},
		{"process_vm_writev_self", func() error { return peek(unix.SYS_PROCESS_VM_WRITEV, os.Getpid()) }},
		{"pidfd_getfd", func() error {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return call(unix.SYS_PIDFD_GETFD, uintptr(fd), 0, 0)
		}},
		{"kcmp", func() error { return call(unix.SYS_KCMP, 1, uintptr(os.Getpid()), 0, 0, 0) }},
		{"signal_agent", func() error { return unix.Kill(1, 0) }},
		{"see_agent", func() error { return readable("/proc/1/status") }},
		{"read_agent_environ", func() error { return readable("/proc/1/environ") }},
		{"read_agent_maps", func() error { return readable("/proc/1/maps") }},
		{"read_agent_mem", func() error { return openable("/proc/1/mem", unix.O_RDWR) }},
		{"enter_agent_root", func() error { return openable("/proc/1/root/run", unix.O_RDONLY) }},
		{"read_agent_fds", func() error { return openable("/proc/1/fd", unix.O_RDONLY) }},
		{"see_host_process", func() error { return readable("/proc/" + host + "/status") }},
		{"signal_host_process", func() error { return unix.Kill(t.hostPID, 0) }},
		{"setuid_root", func() error { return unix.Setuid(0) }},
		{"setgid_root", func() error { return unix.Setgid(0) }},
		{"set_user_id_program", func() error {
			if out, err := exec.Command(t.suid, "-child=whoami").CombinedOutput(); err != nil {
				return fmt.Errorf("%w %.80s", err, out)
			}
			return nil
		}},
		{"raise_core_limit", func() error {
			return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})
		}},
		{"raise_memlock_limit", func() error {
			return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 1 << 40, Max: 1 << 40})
		}},
		{"negative_nice", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) }},
		{"realtime_scheduling", func() error {
			param := int32(1)
			return call(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_FIFO, uintptr(unsafe.Pointer(&param)))
		}},
		{"lower_oom_score", func() error { return writable("/proc/self/oom_score_adj", "-1000") }},
		{"write_uid_map", func() error { return writable("/proc/self/uid_map", "0 0 1") }},
		{"gain_capability_by_exec", func() error {
			b, err := os.ReadFile("/proc/thread-self/status")
			if err != nil {
				return err
			}
			if !hasLine(string(b), "NoNewPrivs:\t1") {
				return nil
			}
			return errors.New("no_new_privs is set")
		}},
	}
}
