package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

const (
	nativeArch = specs.ArchX86_64
	auditArch  = 0xc000003e // AUDIT_ARCH_X86_64
)

// foreignNumbers ends the thread that calls by x32, whose numbers have bit 30
// set and which the kernel takes for the same instruction set.
func foreignNumbers() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: 0x40000000, SkipFalse: 1},
		bpf.RetConstant{Val: retKillThread},
	}
}
