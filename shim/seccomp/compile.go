package seccomp

import (
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// maxProgram is BPF_MAXINSNS.
const maxProgram = 4096

// Compile turns a profile into a filter for this machine.
func Compile(p *specs.LinuxSeccomp) ([]bpf.RawInstruction, error) {
	prog, err := program(p)
	if err != nil {
		return nil, fmt.Errorf("linux.seccomp: %w", err)
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("linux.seccomp: assemble: %w", err)
	}
	return raw, nil
}

func program(p *specs.LinuxSeccomp) ([]bpf.Instruction, error) {
	if err := checkProfile(p, nativeArch); err != nil {
		return nil, err
	}
	otherwise, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	all, largest, err := verdicts(p, otherwise)
	if err != nil {
		return nil, err
	}
	unknown := otherwise
	if otherwise&0xffff0000 == retErrno {
		unknown = retErrno | uint32(unix.ENOSYS)
	}
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: retKillThread},
		bpf.LoadAbsolute{Off: offsetNumber, Size: 4},
	}
	prog = append(prog, foreignNumbers()...)
	prog = append(prog,
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: largest, SkipFalse: 1},
		bpf.RetConstant{Val: unknown},
	)
	prog = append(prog, search(spans(all, otherwise))...)
	if len(prog) > maxProgram {
		return nil, fmt.Errorf("the filter has %d instructions, the kernel takes %d", len(prog), maxProgram)
	}
	return prog, nil
}

// span is a run of call numbers that get the same verdict, up to the next.
type span struct {
	first uint32
	verdict
}

// spans covers all numbers from 0 on, in order.
func spans(all map[uint32]verdict, otherwise uint32) []span {
	out := []span{{verdict: verdict{always: otherwise}}}
	put := func(nr uint32, v verdict) {
		last := &out[len(out)-1]
		switch {
		case last.first == nr:
			last.verdict = v
			if len(out) > 1 && v.plain() && out[len(out)-2].plain() && out[len(out)-2].always == v.always {
				out = out[:len(out)-1]
			}
		case !v.plain() || !last.plain() || last.always != v.always:
			out = append(out, span{nr, v})
		}
	}
	for _, nr := range slices.Sorted(maps.Keys(all)) {
		put(nr, all[nr])
		put(nr+1, verdict{always: otherwise})
	}
	return out
}

// search decides by the number in the accumulator, halving the spans.
func search(s []span) []bpf.Instruction {
	if len(s) == 1 {
		return leaf(s[0].verdict)
	}
	half := len(s) / 2
	low, high := search(s[:half]), search(s[half:])
	out := []bpf.Instruction{}
	// A conditional jump reaches 255 instructions, an unconditional one all.
	if len(low) <= 255 {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: s[half].first, SkipTrue: uint8(len(low))})
	} else {
		out = append(out,
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: s[half].first, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(low))})
	}
	return append(append(out, low...), high...)
}

// leaf decides by the arguments, and ends.
func leaf(v verdict) []bpf.Instruction {
	var out []bpf.Instruction
	for _, all := range v.any {
		out = append(out, alternative(all, v.then)...)
	}
	return append(out, bpf.RetConstant{Val: v.always})
}

// alternative returns then if all conditions hold, and goes on behind itself
// if one does not.
func alternative(all []condition, then uint32) []bpf.Instruction {
	out := []bpf.Instruction{bpf.RetConstant{Val: then}}
	for _, c := range slices.Backward(all) {
		out = append(test(c, len(out)), out...)
	}
	return out
}

// test goes on behind itself if the condition holds, and otherwise leaves out
// the next skip instructions, which are few: a test has at most 6.
func test(c condition, skip int) []bpf.Instruction {
	const word = 1<<32 - 1
	low, high := argument(c.arg)
	vlow, vhigh := uint32(c.value&word), uint32(c.value>>32)
	load := func(off uint32, mask uint64) []bpf.Instruction {
		l := []bpf.Instruction{bpf.LoadAbsolute{Off: off, Size: 4}}
		if c.op == specs.OpMaskedEqual {
			l = append(l, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(mask)})
		}
		return l
	}
	first, second := load(high, c.mask>>32), load(low, c.mask&word)
	n := uint8(len(second) + 1) // what the second half is long
	away := uint8(skip)
	var out []bpf.Instruction
	switch c.op {
	case specs.OpEqualTo, specs.OpMaskedEqual:
		out = append(first, bpf.JumpIf{Cond: bpf.JumpEqual, Val: vhigh, SkipFalse: n + away})
		out = append(append(out, second...), bpf.JumpIf{Cond: bpf.JumpEqual, Val: vlow, SkipFalse: away})
	case specs.OpNotEqual:
		out = append(first, bpf.JumpIf{Cond: bpf.JumpEqual, Val: vhigh, SkipFalse: n})
		out = append(append(out, second...), bpf.JumpIf{Cond: bpf.JumpEqual, Val: vlow, SkipTrue: away})
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		cond := bpf.JumpGreaterThan
		if c.op == specs.OpGreaterEqual {
			cond = bpf.JumpGreaterOrEqual
		}
		out = append(first,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: vhigh, SkipTrue: n + 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: vhigh, SkipFalse: n + away})
		out = append(append(out, second...), bpf.JumpIf{Cond: cond, Val: vlow, SkipFalse: away})
	case specs.OpLessThan, specs.OpLessEqual:
		// Not "greater or equal", and not "greater".
		cond := bpf.JumpGreaterOrEqual
		if c.op == specs.OpLessEqual {
			cond = bpf.JumpGreaterThan
		}
		out = append(first,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: vhigh, SkipTrue: n + 1 + away},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: vhigh, SkipFalse: n})
		out = append(append(out, second...), bpf.JumpIf{Cond: cond, Val: vlow, SkipTrue: away})
	}
	return out
}

// argument gives the offsets of an argument's low and high halves; both
// architectures are little-endian.
func argument(n uint32) (low, high uint32) { return offsetArgs + 8*n, offsetArgs + 8*n + 4 }
