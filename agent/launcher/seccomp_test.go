package launcher

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// judgement is what filters that are all installed answer to a call: the
// strictest of their answers, as the kernel takes it.
func judgement(t *testing.T, filters []*bpf.VM, arch, nr uint32, arg0 uint64) uint32 {
	t.Helper()
	// The machine reads packets, whose numbers begin with the high byte.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[dataNr:], nr)
	binary.BigEndian.PutUint32(data[dataArch:], arch)
	binary.BigEndian.PutUint32(data[dataArg0:], uint32(arg0))
	binary.BigEndian.PutUint32(data[dataArg0+4:], uint32(arg0>>32))
	strictest := uint32(unix.SECCOMP_RET_ALLOW)
	for _, f := range filters {
		n, err := f.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		answer := uint32(n)
		if int32(answer&unix.SECCOMP_RET_ACTION_FULL) < int32(strictest&unix.SECCOMP_RET_ACTION_FULL) {
			strictest = answer
		}
	}
	return strictest
}

func machine(t *testing.T, raw []bpf.RawInstruction, err error) *bpf.VM {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	program, whole := bpf.Disassemble(raw)
	if !whole {
		t.Fatal("the filter has instructions that are unknown")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// What a launcher adds when it becomes a function's must not let anything through
// that a whole filter stops.
func TestTwoFiltersAnswerLikeAWholeOne(t *testing.T) {
	filter := func(o FilterOptions) *bpf.VM {
		raw, err := Filter(o)
		return machine(t, raw, err)
	}
	narrow := func(denyInet bool) *bpf.VM {
		raw, err := narrower(denyInet)
		return machine(t, raw, err)
	}
	numbers := []uint32{0x3fffffff, 0x40000000, 0x40000000 | unix.SYS_SOCKET, 0x40000000 | unix.SYS_CHROOT, 1 << 31, 1<<32 - 1}
	for nr := range uint32(1024) {
		numbers = append(numbers, nr)
	}
	args := []uint64{1 << 32, 1<<32 | unix.AF_INET, 1<<32 | unix.AF_INET6, 1<<32 | unix.AF_UNIX, 1<<64 - 1, newNamespaces}
	for n := range uint64(64) {
		args = append(args, n)
	}
	for bit := range 64 {
		args = append(args, 1<<bit)
	}
	for name, tc := range map[string]struct{ both, whole []*bpf.VM }{
		"blank": {[]*bpf.VM{filter(FilterOptions{AllowEnter: true}), narrow(false)}, []*bpf.VM{filter(FilterOptions{})}},
		"blank without network": {[]*bpf.VM{filter(FilterOptions{AllowEnter: true}), narrow(true)},
			[]*bpf.VM{filter(FilterOptions{DenyInet: true})}},
		"without network": {[]*bpf.VM{filter(FilterOptions{}), narrow(true)}, []*bpf.VM{filter(FilterOptions{DenyInet: true})}},
	} {
		t.Run(name, func(t *testing.T) {
			answers := map[uint32]int{}
			for _, arch := range []uint32{auditArch, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM} {
				for _, nr := range numbers {
					for _, arg := range args {
						got, want := judgement(t, tc.both, arch, nr, arg), judgement(t, tc.whole, arch, nr, arg)
						if got != want {
							t.Fatalf("call %d(%#x) of architecture %#x: %#x, want %#x", nr, arg, arch, got, want)
						}
						answers[got]++
					}
				}
			}
			for _, want := range []uint32{allow, kill, deny, noSys, noAF} {
				if answers[want] == 0 {
					t.Errorf("no call was answered with %#x", want)
				}
			}
		})
	}
}
