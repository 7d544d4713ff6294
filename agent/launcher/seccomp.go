package launcher

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; the low half of an argument comes first on
// the little-endian machines we run on.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
)

// deniedEverywhere is what no process in a sandbox needs. The runtime's profile
// denies it as well: this is the second layer, which holds if that one is lost
// on the way through configuration.
var deniedEverywhere = [...]uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP, unix.SYS_FANOTIFY_INIT,
	unix.SYS_PERSONALITY, unix.SYS_LOOKUP_DCOOKIE,
}

// newNamespaces are clone's flags that make namespaces: each would hand its
// maker a full set of capabilities over a fresh part of the kernel.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// FilterOptions say what a filter denies beyond what no sandbox needs.
type FilterOptions struct {
	DenyInet   bool // no IPv4 or IPv6 sockets, loopback included
	DenyExec   bool // no execve: for the agent, once the launcher runs
	AllowEnter bool // chroot stays: for a launcher that has no function yet
}

// Answers of a filter: denied calls fail with EPERM, clone3 with ENOSYS, so that
// libraries fall back to clone, whose flags can be looked at; a call of another
// architecture than the one compiled for kills the process, for its numbers mean
// something else.
const (
	allow = unix.SECCOMP_RET_ALLOW
	kill  = unix.SECCOMP_RET_KILL_PROCESS
	deny  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	noSys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	noAF  = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
)

// Filter assembles a whole seccomp filter.
func Filter(o FilterOptions) ([]bpf.RawInstruction, error) {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: kill},
		bpf.LoadAbsolute{Off: dataNr, Size: 4},
	}
	p = append(p, foreignABI(kill)...)
	denied := append([]uint32{}, deniedEverywhere[:]...)
	denied = append(denied, deniedHere[:]...)
	if !o.AllowEnter {
		denied = append(denied, unix.SYS_CHROOT)
	}
	if o.DenyExec {
		denied = append(denied, unix.SYS_EXECVE, unix.SYS_EXECVEAT)
	}
	for _, nr := range denied {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: 1}, bpf.RetConstant{Val: deny})
	}
	p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1}, bpf.RetConstant{Val: noSys})
	p = append(p,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE, SkipTrue: 4},
		bpf.LoadAbsolute{Off: dataArg0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: newNamespaces, SkipFalse: 1},
		bpf.RetConstant{Val: deny},
		bpf.RetConstant{Val: allow},
	)
	families := []uint32{unix.AF_UNIX}
	if !o.DenyInet {
		families = append(families, unix.AF_INET, unix.AF_INET6)
	}
	for _, nr := range []uint32{unix.SYS_SOCKET, unix.SYS_SOCKETPAIR} {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: uint8(2*len(families) + 2)},
			bpf.LoadAbsolute{Off: dataArg0, Size: 4})
		for _, f := range families {
			p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: f, SkipTrue: 1}, bpf.RetConstant{Val: allow})
		}
		p = append(p, bpf.RetConstant{Val: noAF})
	}
	p = append(p, bpf.RetConstant{Val: allow})
	return assemble(p)
}

// narrower assembles what a launcher that becomes a function's adds to its
// filter, Filter with AllowEnter: of two filters the stricter answer counts, and
// both together deny what Filter without it denies. For a whole filter the kernel
// would run hundreds of calls through it in advance, while a caller waits.
func narrower(denyInet bool) ([]bpf.RawInstruction, error) {
	p := []bpf.Instruction{
		// The architecture is left to the other filter, which kills.
		bpf.LoadAbsolute{Off: dataNr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_CHROOT, SkipFalse: 1},
		bpf.RetConstant{Val: deny},
	}
	if denyInet {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_SOCKET, SkipTrue: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKETPAIR, SkipTrue: 4},
			bpf.LoadAbsolute{Off: dataArg0, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_INET6, SkipTrue: 1},
			bpf.RetConstant{Val: noAF})
	}
	return assemble(append(p, bpf.RetConstant{Val: allow}))
}

func assemble(p []bpf.Instruction) ([]bpf.RawInstruction, error) {
	raw, err := bpf.Assemble(p)
	if err != nil {
		return nil, fmt.Errorf("assemble seccomp filter: %w", err)
	}
	return raw, nil
}

// Install puts a filter on every thread of this process, for good. It sets
// no_new_privs first, without which an unprivileged process may not.
func Install(filter []bpf.RawInstruction) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	insns := make([]unix.SockFilter, len(filter))
	for i, r := range filter {
		insns[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(insns)), Filter: &insns[0]}
	// A positive result is the id of a thread that could not be brought along:
	// then the filter is on none.
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(insns)
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	if r != 0 {
		return fmt.Errorf("install seccomp filter: thread %d has one of its own", r)
	}
	return nil
}
