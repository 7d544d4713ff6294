package seccomp

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// machine runs a compiled filter as the kernel would.
type machine struct{ vm *bpf.VM }

func load(t interface {
	Helper()
	Fatal(...any)
}, p *specs.LinuxSeccomp,
) machine {
	t.Helper()
	prog, err := program(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(prog) > maxProgram {
		t.Fatal("too long")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}
}

// decide gives the filter's return value for a call. The package's machine
// reads words as packets have them, high byte first.
func (m machine) decide(arch, nr uint32, args ...uint64) uint32 {
	b := binary.BigEndian.AppendUint32(nil, nr)
	b = binary.BigEndian.AppendUint32(b, arch)
	b = append(b, make([]byte, 8)...) // instruction pointer
	for i := range 6 {
		var a uint64
		if i < len(args) {
			a = args[i]
		}
		b = binary.BigEndian.AppendUint32(b, uint32(a))
		b = binary.BigEndian.AppendUint32(b, uint32(a>>32))
	}
	ret, err := m.vm.Run(b)
	if err != nil {
		panic(err)
	}
	return uint32(ret)
}

func nr(t testing.TB, name string) uint32 {
	t.Helper()
	n, ok := number(name)
	if !ok {
		t.Fatalf("no system call %s", name)
	}
	return n
}

func base(rules ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{nativeArch}, Syscalls: rules}
}

func allow(names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: specs.ActAllow}
}

const (
	eperm  = retErrno | uint32(unix.EPERM)
	enosys = retErrno | uint32(unix.ENOSYS)
)

func TestRulesDecide(t *testing.T) {
	socket := allow("socket")
	socket.Args = []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_UNIX, Op: specs.OpEqualTo}}
	inet := allow("socket")
	inet.Args = []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_INET, Op: specs.OpEqualTo}, {Index: 1, Value: unix.SOCK_STREAM, Op: specs.OpEqualTo}}
	clone := allow("clone")
	clone.Args = []specs.LinuxSeccompArg{{Index: 0, Value: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, Op: specs.OpMaskedEqual}}
	m := load(t, base(
		allow("read", "write", "getpid"), socket, inet, clone,
		specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(unix.ENOSYS))},
		specs.LinuxSyscall{Names: []string{"ptrace"}, Action: specs.ActKillProcess},
		allow("not_of_this_architecture"), allow("openat2"),
	))
	for _, c := range []struct {
		name string
		args []uint64
		want uint32
	}{
		{"read", nil, retAllow},
		{"getpid", nil, retAllow},
		{"openat2", nil, retAllow},
		{"mount", nil, eperm},
		{"clone3", nil, enosys},
		{"ptrace", nil, retKillProcess},
		{"socket", []uint64{unix.AF_UNIX}, retAllow},
		{"socket", []uint64{unix.AF_UNIX | 1<<32}, eperm}, // the high half counts
		{"socket", []uint64{unix.AF_NETLINK}, eperm},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM}, retAllow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW}, eperm}, // both must hold
		{"clone", []uint64{unix.CLONE_VM}, retAllow},
		{"clone", []uint64{unix.CLONE_VM | unix.CLONE_NEWUSER}, eperm},
	} {
		if got := m.decide(auditArch, nr(t, c.name), c.args...); got != c.want {
			t.Errorf("%s%v: %#x, want %#x", c.name, c.args, got, c.want)
		}
	}
	for number, want := range map[uint32]uint32{10000: enosys, 1 << 29: enosys} {
		if got := m.decide(auditArch, number); got != want {
			t.Errorf("call %d: %#x, want %#x", number, got, want)
		}
	}
	if got := m.decide(0x40000003, nr(t, "read")); got != retKillThread { // i386
		t.Errorf("a call of another architecture: %#x", got)
	}
	if nativeArch == specs.ArchX86_64 {
		if got := m.decide(auditArch, nr(t, "read")|0x40000000); got != retKillThread {
			t.Errorf("a call by x32: %#x", got)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestAnArgumentNamedTwiceMakesAlternatives(t *testing.T) {
	rule := allow("personality")
	rule.Args = []specs.LinuxSeccompArg{{Value: 1, Op: specs.OpEqualTo}, {Value: 8, Op: specs.OpEqualTo}}
	m := load(t, base(rule, allow("openat2")))
	for arg, want := range map[uint64]uint32{1: retAllow, 8: retAllow, 9: eperm} {
		if got := m.decide(auditArch, nr(t, "personality"), arg); got != want {
			t.Errorf("personality(%d): %#x, want %#x", arg, got, want)
		}
	}
}

func TestWhatIsNotKnownIsRefused(t *testing.T) {
	withArg := func(a specs.LinuxSeccompArg) specs.LinuxSyscall {
		r := allow("read")
		r.Args = []specs.LinuxSeccompArg{a}
		return r
	}
	for want, p := range map[string]*specs.LinuxSeccomp{
		"flags":          {DefaultAction: specs.ActErrno, Architectures: []specs.Arch{nativeArch}, Flags: []specs.LinuxSeccompFlag{"x"}},
		"listenerPath":   {DefaultAction: specs.ActErrno, Architectures: []specs.Arch{nativeArch}, ListenerPath: "/x"},
		"architectures":  {DefaultAction: specs.ActErrno, Architectures: []specs.Arch{nativeArch, specs.ArchX86}},
		"must deny":      {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{nativeArch}},
		"defaultAction":  {DefaultAction: "SCMP_ACT_NEW", Architectures: []specs.Arch{nativeArch}},
		"SCMP_ACT_TRACE": base(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActTrace}),
		"errnoRet":       base(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, ErrnoRet: ptr(uint(1))}),
		"5000":           base(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(5000))}),
		"no argument 6":  base(withArg(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo})),
		"operator":       base(withArg(specs.LinuxSeccompArg{Op: "SCMP_CMP_X"})),
		"second value":   base(withArg(specs.LinuxSeccompArg{Op: specs.OpEqualTo, ValueTwo: 1})),
		"never be left":  base(withArg(specs.LinuxSeccompArg{Op: specs.OpMaskedEqual, Value: 1, ValueTwo: 2})),
		"another action": base(allow("read"), specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActKill}),
		"names is empty": base(specs.LinuxSyscall{Action: specs.ActAllow}),
	} {
		if _, err := Compile(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// reference decides by the rules one after the other, as they are written.
func reference(p *specs.LinuxSeccomp, number uint32, args []uint64) uint32 {
	largest := uint32(0)
	for _, r := range p.Syscalls {
		for _, name := range r.Names {
			if n, ok := numberOf(name); ok {
				largest = max(largest, n)
			}
		}
	}
	if number > largest {
		return enosys
	}
	for _, r := range p.Syscalls {
		for _, name := range r.Names {
			n, ok := numberOf(name)
			if !ok || n != number {
				continue
			}
			if holds(r.Args, args) {
				ret, _ := action(r.Action, r.ErrnoRet)
				return ret
			}
		}
	}
	return eperm
}

func numberOf(name string) (uint32, bool) { return number(name) }

func holds(conditions []specs.LinuxSeccompArg, args []uint64) bool {
	one := func(c specs.LinuxSeccompArg) bool {
		a := args[c.Index]
		switch c.Op {
		case specs.OpEqualTo:
			return a == c.Value
		case specs.OpNotEqual:
			return a != c.Value
		case specs.OpGreaterThan:
			return a > c.Value
		case specs.OpGreaterEqual:
			return a >= c.Value
		case specs.OpLessThan:
			return a < c.Value
		case specs.OpLessEqual:
			return a <= c.Value
		default:
			return a&c.Value == c.ValueTwo
		}
	}
	seen := map[uint]bool{}
	twice := false
	for _, c := range conditions {
		twice = twice || seen[c.Index]
		seen[c.Index] = true
	}
	if twice {
		return slices.ContainsFunc(conditions, one)
	}
	return !slices.ContainsFunc(conditions, func(c specs.LinuxSeccompArg) bool { return !one(c) })
}

// The compiled filter decides every call as the rules read.
func TestFiltersAgreeWithTheRules(t *testing.T) {
	names := []string{"read", "write", "openat", "close", "mmap", "ioctl", "socket", "clone", "execve", "unshare", "openat2", "personality", "prctl", "no_such_call"}
	edges := []uint64{0, 1, 2, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1<<63 + 5, 1<<64 - 1}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual}
	rapid.Check(t, func(t *rapid.T) {
		p := base()
		for range rapid.IntRange(0, 12).Draw(t, "rules") {
			r := allow(rapid.SliceOfN(rapid.SampledFrom(names), 1, 4).Draw(t, "names")...)
			for range rapid.IntRange(0, 3).Draw(t, "conditions") {
				a := specs.LinuxSeccompArg{
					Index: uint(rapid.IntRange(0, 2).Draw(t, "argument")), Op: rapid.SampledFrom(ops).Draw(t, "operator"), Value: rapid.SampledFrom(edges).Draw(t, "value"),
				}
				if a.Op == specs.OpMaskedEqual {
					a.ValueTwo = rapid.SampledFrom(edges).Draw(t, "result") & a.Value
				}
				r.Args = append(r.Args, a)
			}
			p.Syscalls = append(p.Syscalls, r)
		}
		m := load(t, p)
		for range 40 {
			n, ok := numberOf(rapid.SampledFrom(names).Draw(t, "call"))
			if !ok {
				n = uint32(rapid.IntRange(0, 1000).Draw(t, "number"))
			}
			args := []uint64{rapid.SampledFrom(edges).Draw(t, "a"), rapid.SampledFrom(edges).Draw(t, "b"), rapid.SampledFrom(edges).Draw(t, "c"), 0, 0, 0}
			if got, want := m.decide(auditArch, n, args...), reference(p, n, args); got != want {
				t.Fatalf("call %d%v: %#x, want %#x", n, args, got, want)
			}
		}
	})
}

// containerd's default profile, which the runtime's is made of, call by call.
func TestTheDefaultProfileIsCompiled(t *testing.T) {
	p := containerd.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	p.Architectures = []specs.Arch{nativeArch}
	m := load(t, p)
	for n := range uint32(600) {
		for _, args := range [][]uint64{{0, 0, 0, 0, 0, 0}, {8, 0, 0, 0, 0, 0}, {unix.AF_VSOCK, 0, 0, 0, 0, 0}, {unix.CLONE_NEWNS, 0, 0, 0, 0, 0}} {
			if got, want := m.decide(auditArch, n, args...), reference(p, n, args); got != want {
				t.Errorf("call %d(%d): %#x, want %#x", n, args[0], got, want)
			}
		}
	}
}
