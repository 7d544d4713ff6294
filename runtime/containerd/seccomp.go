package containerd

import (
	goruntime "runtime"
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// neverAllowed are calls that containerd's default profile allows, or allows
// in some of its versions, and that neither an agent nor a function needs. A
// call that no rule allows fails with EPERM.
func neverAllowed() []string {
	return []string{
		// A process of the sandbox must not read or steer another one: the
		// agent holds keys. PTRACE_TRACEME by PID 1 also wedges the shim.
		"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
		// io_uring does what other calls do, past every filter on those.
		"io_uring_setup", "io_uring_enter", "io_uring_register",
		// Large kernel attack surface without a use in a function.
		"userfaultfd", "perf_event_open", "bpf", "uretprobe", "modify_ldt", "fanotify_init", "fanotify_mark",
		// Keyrings are shared by user id, not by namespace alone.
		"keyctl", "add_key", "request_key",
		// File handles reach files that no path of the sandbox leads to.
		"open_by_handle_at", "name_to_handle_at",
		// 32-bit socket calls, whose arguments a filter cannot see.
		"socketcall",
		// Clocks belong to the machine.
		"adjtimex", "clock_adjtime", "clock_adjtime64",
	}
}

// seccompProfile is containerd's default profile for the capabilities in s,
// without neverAllowed, for the native instruction set only (the 32-bit entry
// would bring socketcall and ipc back), and with socket(2) cut down to the
// families named here: no netlink, packet, vsock or alg sockets.
func seccompProfile(s *specs.Spec, inet bool) *specs.LinuxSeccomp {
	p := seccomp.DefaultProfile(s)
	if arch, ok := nativeArch(); ok {
		p.Architectures = []specs.Arch{arch}
	}
	banned := neverAllowed()
	rules := make([]specs.LinuxSyscall, 0, len(p.Syscalls)+3)
	for _, rule := range p.Syscalls {
		if rule.Action == specs.ActAllow {
			rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(n string) bool {
				return n == "socket" || slices.Contains(banned, n)
			})
			if len(rule.Names) == 0 {
				continue
			}
		}
		rules = append(rules, rule)
	}
	families := []uint64{unix.AF_UNIX}
	if inet {
		families = append(families, unix.AF_INET, unix.AF_INET6)
	}
	for _, f := range families {
		rules = append(rules, specs.LinuxSyscall{
			Names:  []string{"socket"},
			Action: specs.ActAllow,
			Args:   []specs.LinuxSeccompArg{{Index: 0, Value: f, Op: specs.OpEqualTo}},
		})
	}
	p.Syscalls = rules
	return p
}

func nativeArch() (specs.Arch, bool) {
	switch goruntime.GOARCH {
	case "amd64":
		return specs.ArchX86_64, true
	case "arm64":
		return specs.ArchAARCH64, true
	}
	return "", false
}
