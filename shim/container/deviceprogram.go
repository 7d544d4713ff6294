package container

import (
	"fmt"
	"strconv"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The kernel's numbers for a device program's context (enum bpf_devcg_* in
// linux/bpf.h): struct bpf_cgroup_dev_ctx is access_type, with the access in its
// upper half and the type in its lower, major and minor, 32 bits each.
const (
	devBlock, devChar               = 1, 2
	accMknod, accRead, accWrite     = 1, 2, 4
	ctxAccessType, ctxMajor, ctxMin = 0, 4, 8
)

// deviceProgram is what cgroup v2 has instead of a devices controller: a program
// that the kernel asks at every use of a device by a process of the group. It says
// what deviceRules say, and 0, which denies, in the end.
func deviceProgram(rules []deviceRule) (asm.Instructions, error) {
	const kind, access, major, minor = asm.R2, asm.R3, asm.R4, asm.R5
	p := asm.Instructions{
		asm.LoadMem(kind, asm.R1, ctxAccessType, asm.Word),
		asm.Mov.Reg32(access, kind),
		asm.And.Imm32(kind, 0xffff),
		asm.RSh.Imm32(access, 16),
		asm.LoadMem(major, asm.R1, ctxMajor, asm.Word),
		asm.LoadMem(minor, asm.R1, ctxMin, asm.Word),
	}
	for i, r := range rules {
		kinds := map[byte]int32{'b': devBlock, 'c': devChar}
		k, ok := kinds[r.kind]
		allowed := int32(0)
		for _, a := range r.access {
			switch a {
			case 'm':
				allowed |= accMknod
			case 'r':
				allowed |= accRead
			case 'w':
				allowed |= accWrite
			default:
				ok = false
			}
		}
		if !ok {
			return nil, fmt.Errorf("device rule %q is not understood", r)
		}
		next := "rule " + strconv.Itoa(i+1)
		// Every access that is asked for must be in the rule.
		rule := asm.Instructions{
			asm.JNE.Imm32(kind, k, next),
			asm.Mov.Reg32(asm.R1, access),
			asm.And.Imm32(asm.R1, ^allowed),
			asm.JNE.Imm32(asm.R1, 0, next),
		}
		if r.major >= 0 {
			rule = append(rule, asm.JNE.Imm32(major, int32(r.major), next))
		}
		if r.minor >= 0 {
			rule = append(rule, asm.JNE.Imm32(minor, int32(r.minor), next))
		}
		rule = append(rule, asm.Mov.Imm(asm.R0, 1), asm.Return())
		rule[0] = rule[0].WithSymbol("rule " + strconv.Itoa(i))
		p = append(p, rule...)
	}
	end := asm.Mov.Imm(asm.R0, 0).WithSymbol("rule " + strconv.Itoa(len(rules)))
	return append(p, end, asm.Return()), nil
}

// loadProgram gives rules to the kernel.
func loadProgram(rules []deviceRule) (*ebpf.Program, error) {
	p, err := deviceProgram(rules)
	if err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "faasd_devices", Type: ebpf.CGroupDevice, Instructions: p, License: "Apache-2.0"})
	if err != nil {
		return nil, fmt.Errorf("load the program of device rules: %w", err)
	}
	return prog, nil
}

// attachProgram has the kernel hold the processes of a v2 group, and of all groups
// inside it, to the program for as long as the group exists.
func attachProgram(group int, prog *ebpf.Program) error {
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: group, Program: prog, Attach: ebpf.AttachCGroupDevice, Flags: unix.BPF_F_ALLOW_MULTI})
	if err != nil {
		return fmt.Errorf("attach the program of device rules: %w", err)
	}
	return nil
}

// usualDevices is the one program of this process: all its groups have the same
// rules, and the kernel need not verify them again for each.
var usualDevices = sync.OnceValues(func() (*ebpf.Program, error) { return loadProgram(deviceRules()) })
