package seccomp

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What a filter returns for a call, linux/seccomp.h.
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retErrno       = 0x00050000
	retAllow       = 0x7fff0000
)

// condition is a comparison of one argument.
type condition struct {
	arg   uint32 // 0 to 5
	op    specs.LinuxSeccompOperator
	value uint64
	mask  uint64 // of the argument, for OpMaskedEqual
}

// verdict is what all calls of one number get.
type verdict struct {
	always uint32        // where no alternative holds
	any    [][]condition // alternatives, each of conditions that must all hold
	then   uint32        // where one does
}

func (v verdict) plain() bool { return len(v.any) == 0 }

// action is the return value for an action, with its error number if it has
// one.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	if errno != nil && a != specs.ActErrno {
		return 0, fmt.Errorf("action %s takes no errnoRet", a)
	}
	switch a {
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActErrno:
		n := uint(unix.EPERM)
		if errno != nil {
			n = *errno
		}
		if n > 4095 {
			return 0, fmt.Errorf("errnoRet %d is no error number", n)
		}
		return retErrno | uint32(n), nil
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	}
	return 0, fmt.Errorf("action %q is not implemented", a)
}

// verdicts resolves the rules of a profile by call number, and gives the
// largest number that it names.
func verdicts(p *specs.LinuxSeccomp, otherwise uint32) (map[uint32]verdict, uint32, error) {
	all := make(map[uint32]verdict)
	settled := make(map[uint32]bool) // numbers with a rule that has no condition
	largest := uint32(0)
	for i, rule := range p.Syscalls {
		ret, err := action(rule.Action, rule.ErrnoRet)
		if err != nil {
			return nil, 0, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		alternatives, err := conditions(rule.Args)
		if err != nil {
			return nil, 0, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		if len(rule.Names) == 0 {
			return nil, 0, fmt.Errorf("syscalls[%d].names is empty", i)
		}
		for _, name := range rule.Names {
			nr, known := number(name)
			if !known {
				continue
			}
			largest = max(largest, nr)
			if ret == otherwise {
				continue
			}
			v, seen := all[nr]
			if !seen {
				v = verdict{always: otherwise}
			}
			switch {
			case settled[nr] && v.always == ret:
				continue // more of what is decided already
			case settled[nr], !v.plain() && v.then != ret:
				return nil, 0, fmt.Errorf("syscalls[%d]: another rule for %s has another action", i, name)
			case len(alternatives) == 0:
				v = verdict{always: ret}
				settled[nr] = true
			default:
				v.any, v.then = append(v.any, alternatives...), ret
			}
			all[nr] = v
		}
	}
	return all, largest, nil
}

// conditions turns a rule's arguments into alternatives: one in which all must
// hold, or, where an argument appears twice, one for each.
func conditions(args []specs.LinuxSeccompArg) ([][]condition, error) {
	var all []condition
	var seen []uint32
	twice := false
	for _, a := range args {
		c := condition{arg: uint32(a.Index), op: a.Op, value: a.Value}
		if a.Index > 5 {
			return nil, fmt.Errorf("args: a system call has no argument %d", a.Index)
		}
		switch a.Op {
		case specs.OpMaskedEqual:
			// The specification's value is the mask, its second value the result.
			c.mask, c.value = a.Value, a.ValueTwo
			if c.value&^c.mask != 0 {
				return nil, fmt.Errorf("args: %#x can never be left of a number masked with %#x", c.value, c.mask)
			}
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual:
			if a.ValueTwo != 0 {
				return nil, fmt.Errorf("args: operator %s takes no second value", a.Op)
			}
		default:
			return nil, fmt.Errorf("args: operator %q is not implemented", a.Op)
		}
		twice = twice || slices.Contains(seen, c.arg)
		seen = append(seen, c.arg)
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, nil
	}
	if !twice {
		return [][]condition{all}, nil
	}
	var out [][]condition
	for _, c := range all {
		out = append(out, []condition{c})
	}
	return out, nil
}

// checkProfile refuses what the compiler does not implement.
func checkProfile(p *specs.LinuxSeccomp, native specs.Arch) error {
	switch {
	case len(p.Flags) > 0:
		return errors.New("flags are not implemented")
	case p.ListenerPath != "" || p.ListenerMetadata != "":
		return errors.New("listenerPath and listenerMetadata are not implemented")
	case len(p.Architectures) != 1 || p.Architectures[0] != native:
		return fmt.Errorf("architectures must be %s alone, which this machine executes natively", native)
	case p.DefaultAction == specs.ActAllow:
		// Names that are not known are passed over, which is safe only so long
		// as what is passed over is denied.
		return errors.New("defaultAction must deny")
	}
	return nil
}
