package container

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/shim/stage"
)

// capabilityNames are the capabilities by number, linux/capability.h.
func capabilityNames() []string {
	return strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT
SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)
}

// capabilitySet is a set of capabilities as the kernel has them, a bit each.
func capabilitySet(list []string) (uint64, error) {
	var set uint64
next:
	for _, name := range list {
		for n, known := range capabilityNames() {
			if name == "CAP_"+known {
				set |= 1 << n
				continue next
			}
		}
		return 0, fmt.Errorf("process.capabilities: %q is not known to this runtime", name)
	}
	return set, nil
}

// lastCapability is the largest one that this kernel has.
func lastCapability() (int, error) {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, fmt.Errorf("read the last capability: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < 0 || n > 63 {
		return 0, fmt.Errorf("read the last capability: %q is not one", b)
	}
	return n, nil
}

// becomeRoot takes the ids of the user namespace's root. Until the maps are
// written a process has none; files that it made would be nobody's.
func becomeRoot(p *stage.Program) {
	zero := stage.Num(0)
	p.Call("set groups", unix.SYS_SETGROUPS, zero, zero)
	p.Call("set group ids", unix.SYS_SETRESGID, zero, zero, zero)
	p.Call("set user ids", unix.SYS_SETRESUID, zero, zero, zero)
}

// limitPrivileges leaves the capabilities of the specification, and sees to it
// that no program can give more.
func limitPrivileges(p *stage.Program, c *specs.LinuxCapabilities) error {
	sets := make([]uint64, 5)
	for i, list := range [][]string{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient} {
		var err error
		if sets[i], err = capabilitySet(list); err != nil {
			return err
		}
	}
	bounding, effective, permitted, inheritable, ambient := sets[0], sets[1], sets[2], sets[3], sets[4]
	last, err := lastCapability()
	if err != nil {
		return err
	}
	for n := range last + 1 {
		if bounding>>n&1 == 0 {
			p.Call("drop a capability from the bounding set", unix.SYS_PRCTL, stage.Num(unix.PR_CAPBSET_DROP), stage.Num(n), stage.Num(0), stage.Num(0), stage.Num(0))
		}
	}
	p.Call("set no_new_privs", unix.SYS_PRCTL, stage.Num(unix.PR_SET_NO_NEW_PRIVS), stage.Num(1), stage.Num(0), stage.Num(0), stage.Num(0))
	p.Call("set capabilities", unix.SYS_CAPSET,
		p.Words(unix.LINUX_CAPABILITY_VERSION_3, 0),
		p.Words(uint32(effective), uint32(permitted), uint32(inheritable), uint32(effective>>32), uint32(permitted>>32), uint32(inheritable>>32)))
	p.Call("clear ambient capabilities", unix.SYS_PRCTL, stage.Num(unix.PR_CAP_AMBIENT), stage.Num(unix.PR_CAP_AMBIENT_CLEAR_ALL), stage.Num(0), stage.Num(0), stage.Num(0))
	for n := range last + 1 {
		if ambient>>n&1 != 0 {
			p.Call("raise an ambient capability", unix.SYS_PRCTL, stage.Num(unix.PR_CAP_AMBIENT), stage.Num(unix.PR_CAP_AMBIENT_RAISE), stage.Num(n), stage.Num(0), stage.Num(0))
		}
	}
	return nil
}

// filter installs the seccomp filter. It is the last call but execve: all that
// come before may be ones that the filter denies.
func filter(p *stage.Program, prog []bpf.RawInstruction) {
	b := make([]byte, 0, 8*len(prog))
	for _, i := range prog { // struct sock_filter
		b = binary.NativeEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	// struct sock_fprog begins with a 16-bit length, padded to an address.
	p.Call("install the seccomp filter", unix.SYS_SECCOMP, stage.Num(unix.SECCOMP_SET_MODE_FILTER), stage.Num(0), p.Struct(uint64(len(prog)), p.Bytes(b)))
}

// rlimit is a limit that the shim sets for the process from outside.
type rlimit struct {
	resource int
	unix.Rlimit
}

func rlimitsOf(list []specs.POSIXRlimit) ([]rlimit, error) {
	names := map[string]int{
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
		"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
		"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
		"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
		"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
	}
	var out []rlimit
	for i, l := range list {
		resource, ok := names[l.Type]
		if !ok {
			return nil, fmt.Errorf("process.rlimits[%d]: %q is not known to this runtime", i, l.Type)
		}
		if l.Soft > l.Hard {
			return nil, fmt.Errorf("process.rlimits[%d]: the soft limit of %s is over the hard one", i, l.Type)
		}
		out = append(out, rlimit{resource, unix.Rlimit{Cur: l.Soft, Max: l.Hard}})
	}
	return out, nil
}

// idMap is the text for uid_map and gid_map.
func idMap(field string, list []specs.LinuxIDMapping) (string, error) {
	var b strings.Builder
	for i, m := range list {
		if m.Size == 0 || uint64(m.HostID)+uint64(m.Size) > math.MaxUint32 || uint64(m.ContainerID)+uint64(m.Size) > math.MaxUint32 {
			return "", fmt.Errorf("linux.%s[%d]: the range is empty or ends beyond the largest id", field, i)
		}
		// Root of the container must be nobody on the host.
		if m.HostID == 0 {
			return "", fmt.Errorf("linux.%s[%d]: the host's root must not be in a container", field, i)
		}
		fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return b.String(), nil
}
