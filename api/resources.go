package api

import (
	"fmt"
	"math/big"
	"strings"
)

// Resources is an amount of what a machine has: a limit, a reservation or what
// is free. Zero means none of it, or, in a limit's IO fields, no limit asked.
type Resources struct {
	CPU      int64 `json:"cpu,omitempty" cbor:"1,keyasint,omitempty"`       // millicores
	Memory   int64 `json:"memory,omitempty" cbor:"2,keyasint,omitempty"`    // bytes, tmpfs included
	PIDs     int64 `json:"pids,omitempty" cbor:"3,keyasint,omitempty"`      // processes and threads
	Tmp      int64 `json:"tmp,omitempty" cbor:"4,keyasint,omitempty"`       // bytes of memory-backed scratch, part of Memory
	ReadBps  int64 `json:"read_bps,omitempty" cbor:"5,keyasint,omitempty"`  // block reads, bytes per second
	WriteBps int64 `json:"write_bps,omitempty" cbor:"6,keyasint,omitempty"` // block writes, bytes per second
	Storage  int64 `json:"storage,omitempty" cbor:"7,keyasint,omitempty"`   // bytes of the writable layer, memory-backed and part of Memory
	Scratch  int64 `json:"scratch,omitempty" cbor:"8,keyasint,omitempty"`   // bytes on disk, encrypted
	Ingress  int64 `json:"ingress,omitempty" cbor:"9,keyasint,omitempty"`   // bits per second into the sandbox
	Egress   int64 `json:"egress,omitempty" cbor:"10,keyasint,omitempty"`   // bits per second out of it
	Ports    int64 `json:"ports,omitempty" cbor:"11,keyasint,omitempty"`    // how many ports of the host; which ones is Needs.Ports
	Cores    int64 `json:"cores,omitempty" cbor:"12,keyasint,omitempty"`    // whole cores that no other sandbox is pinned to; how much it may use of them is CPU
}

// Add is the sum of what is reserved. What is part of Memory, and block IO, are
// not reserved apart.
func (r Resources) Add(o Resources) Resources {
	return Resources{CPU: r.CPU + o.CPU, Memory: r.Memory + o.Memory, PIDs: r.PIDs + o.PIDs,
		Scratch: r.Scratch + o.Scratch, Ingress: r.Ingress + o.Ingress, Egress: r.Egress + o.Egress, Ports: r.Ports + o.Ports, Cores: r.Cores + o.Cores}
}

// Sub is the difference of what is reserved, see Add. It may be negative.
func (r Resources) Sub(o Resources) Resources {
	return Resources{CPU: r.CPU - o.CPU, Memory: r.Memory - o.Memory, PIDs: r.PIDs - o.PIDs,
		Scratch: r.Scratch - o.Scratch, Ingress: r.Ingress - o.Ingress, Egress: r.Egress - o.Egress, Ports: r.Ports - o.Ports, Cores: r.Cores - o.Cores}
}

// Lacks names the first resource of which free has less than r asks for, and
// "" if r fits into free.
func (r Resources) Lacks(free Resources) string {
	switch {
	case r.CPU > free.CPU:
		return "cpu"
	case r.Memory > free.Memory:
		return "memory"
	case r.PIDs > free.PIDs:
		return "pids"
	case r.Scratch > free.Scratch:
		return "scratch"
	case r.Ingress > free.Ingress:
		return "ingress"
	case r.Egress > free.Egress:
		return "egress"
	case r.Ports > free.Ports:
		return "ports"
	case r.Cores > free.Cores:
		return "cores"
	}
	return ""
}

// ParseCPU reads a CPU quantity as Kubernetes and OpenFaaS write it, "250m",
// "0.5", "2", into millicores.
func ParseCPU(field, s string) (int64, error) {
	const remedy = `write cores or millicores, as in "0.5" or "500m"`
	t := strings.TrimSpace(s)
	scale := int64(1000)
	if m, ok := strings.CutSuffix(t, "m"); ok {
		t, scale = m, 1
	}
	v, ok := times(t, scale)
	switch {
	case !ok, v.Sign() <= 0, v.Cmp(big.NewRat(1e9, 1)) > 0:
		return 0, Invalid(field, remedy, fmt.Sprintf("%q is not a CPU quantity", s))
	case !v.IsInt():
		return 0, Invalid(field, remedy, fmt.Sprintf("%q is finer than one millicore", s))
	}
	return v.Num().Int64(), nil
}

// units are the suffixes of byte quantities, longest first where one ends in another.
var units = []struct {
	suffix string
	bytes  int64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"k", 1e3}, {"K", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"", 1},
}

// ParseBytes reads a byte quantity, "128Mi", "40M", "1048576", into bytes.
// "m" alone, which docker reads as mega and Kubernetes as a thousandth, is
// refused rather than guessed.
func ParseBytes(field, s string) (int64, error) {
	const remedy = `write bytes with an optional unit Ki, Mi, Gi, k, M or G, as in "128Mi"`
	t := strings.TrimSpace(s)
	for _, u := range units {
		num, ok := strings.CutSuffix(t, u.suffix)
		if !ok {
			continue
		}
		if v, ok := times(num, u.bytes); ok && v.IsInt() && v.Sign() > 0 && v.Cmp(big.NewRat(1<<62, 1)) <= 0 {
			return v.Num().Int64(), nil
		}
		break
	}
	return 0, Invalid(field, remedy, fmt.Sprintf("%q is not a byte quantity", s))
}

// maxDigits bounds the characters of a quantity.
const maxDigits = 32

// times is a decimal number times n, exactly: in binary fractions "4.1G" is no whole
// number of bytes.
func times(s string, n int64) (*big.Rat, bool) {
	if len(s) > maxDigits || !decimal(s) {
		return nil, false
	}
	v, ok := new(big.Rat).SetString(s)
	if !ok {
		return nil, false
	}
	return v.Mul(v, new(big.Rat).SetInt64(n)), true
}

// decimal reports whether s is digits with at most one point: no sign, no
// exponent, no hex, no "inf".
func decimal(s string) bool {
	digits, points := 0, 0
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c == '.':
			points++
		default:
			return false
		}
	}
	return digits > 0 && points <= 1
}
