package containerd

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The resource limits of every process in a sandbox, at most.
const (
	maxFiles  = 65536   // open descriptors
	maxLocked = 8 << 20 // bytes of locked memory; the agent keeps keys in memfd_secret
)

// rlimits are the limits of PID 1, which all others inherit. Raising one over
// what containerd itself has needs CAP_SYS_RESOURCE in the initial user
// namespace, which root of a virtual machine may lack; this process's own
// limits stand for containerd's, and the smaller value is taken.
func rlimits() ([]specs.POSIXRlimit, error) {
	out := []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}} // 0: a core file would hold plaintext
	for _, l := range []struct {
		name     string
		resource int
		most     uint64
	}{{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, maxFiles}, {"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK, maxLocked}} {
		var own unix.Rlimit
		if err := unix.Getrlimit(l.resource, &own); err != nil {
			return nil, fmt.Errorf("read %s: %w", l.name, err)
		}
		v := min(l.most, own.Max)
		out = append(out, specs.POSIXRlimit{Type: l.name, Soft: v, Hard: v})
	}
	return out, nil
}
