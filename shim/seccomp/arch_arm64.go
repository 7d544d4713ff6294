package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

const (
	nativeArch = specs.ArchAARCH64
	auditArch  = 0xc00000b7 // AUDIT_ARCH_AARCH64
)

// foreignNumbers is for x86: arm64 has one table of numbers.
func foreignNumbers() []bpf.Instruction { return nil }
