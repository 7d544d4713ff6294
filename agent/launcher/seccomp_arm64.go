package launcher

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const auditArch = unix.AUDIT_ARCH_AARCH64

// deniedHere are the calls that only some architectures have.
var deniedHere = [...]uint32{unix.SYS_KEXEC_FILE_LOAD}

// foreignABI: this architecture has no second ABI under the same number.
func foreignABI(uint32) []bpf.Instruction { return nil }
