package manifest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// ParseNumber reads one of the numeric fields as people write it: cpu "500m",
// bytes "128Mi", bits per second "10M", pids "64".
func ParseNumber(f Field, name, s string) (uint64, error) {
	switch f {
	case FieldCPU:
		v, err := api.ParseCPU(name, s)
		return uint64(v), err
	case FieldMemory, FieldStorage, FieldScratch:
		v, err := api.ParseBytes(name, s)
		return uint64(v), err
	case FieldIngress, FieldEgress:
		v, err := api.ParseBytes(name, s)
		if err != nil {
			return 0, api.Invalid(name, `write bits per second with an optional unit k, M or G, as in "10M"`, fmt.Sprintf("%q is not a bandwidth", s))
		}
		return uint64(v), nil
	case FieldPIDs, FieldPorts, FieldPriority, FieldCores:
		v, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32)
		if err != nil || v == 0 {
			return 0, api.Invalid(name, "write a number above 0", fmt.Sprintf("%q is none", s))
		}
		return v, nil
	}
	return 0, api.Invalid(name, "use a numeric field", f.String()+" is none")
}

// SetNumber sets a numeric field of n.
func (n *Needs) SetNumber(f Field, v uint64) { n.set(f, v) }

// ParsePort reads "tcp:8080" (this port), "udp" (any one) or "tcp*3" (any three).
func ParsePort(name, s string) (Port, error) {
	const remedy = `write "tcp:8080" for that port, "udp" for any, or "tcp*3" for any three`
	bad := func() (Port, error) { return Port{}, api.Invalid(name, remedy, fmt.Sprintf("%q is not a port", s)) }
	p := Port{Count: 1}
	rest := strings.ToLower(strings.TrimSpace(s))
	switch {
	case strings.HasPrefix(rest, api.ProtocolTCP):
		p.Protocol = TCP
	case strings.HasPrefix(rest, api.ProtocolUDP):
		p.Protocol = UDP
	default:
		return bad()
	}
	rest = rest[len(api.ProtocolTCP):]
	if rest == "" {
		return p, nil
	}
	v, err := strconv.ParseUint(rest[1:], 10, 16)
	if err != nil || v == 0 {
		return bad()
	}
	switch rest[0] {
	case ':':
		p.Number = uint16(v)
	case '*':
		p.Count = uint16(v)
	default:
		return bad()
	}
	return p, nil
}

// ParseReach reads "10.0.0.0/8:443/tcp" or "10.0.0.0/8:8000-8099/udp".
func ParseReach(name, s string) (Reach, error) {
	a, err := api.ParseReach(name, strings.TrimSpace(s))
	if err != nil {
		return Reach{}, err
	}
	first := a.Net.Addr().As4()
	r := Reach{Protocol: TCP, Network: binary.BigEndian.Uint32(first[:]), Bits: uint8(a.Net.Bits()), From: a.From, To: a.To}
	if a.Protocol == api.ProtocolUDP {
		r.Protocol = UDP
	}
	return r, nil
}

// Reach is r as nodes are told; r is valid.
func (r Reach) Reach() api.Reach {
	var first [4]byte
	binary.BigEndian.PutUint32(first[:], r.Network)
	out := api.Reach{Net: netip.PrefixFrom(netip.AddrFrom4(first), int(r.Bits)), Protocol: api.ProtocolTCP, From: r.From, To: r.To}
	if r.Protocol == UDP {
		out.Protocol = api.ProtocolUDP
	}
	return out
}

// ParseRequirement reads "zone=a", "zone!=a", "gpu" (the label is there) or "!gpu".
func ParseRequirement(name, s string) (Requirement, error) {
	s = strings.TrimSpace(s)
	var r Requirement
	switch k, v, ok := strings.Cut(s, "="); {
	case ok && strings.HasSuffix(k, "!"):
		r = Requirement{Key: strings.TrimSpace(strings.TrimSuffix(k, "!")), Op: Differs, Value: strings.TrimSpace(v)}
	case ok:
		r = Requirement{Key: strings.TrimSpace(k), Op: Equals, Value: strings.TrimSpace(strings.TrimPrefix(v, "="))}
	case strings.HasPrefix(s, "!"):
		r = Requirement{Key: strings.TrimSpace(s[1:]), Op: Absent}
	default:
		r = Requirement{Key: s, Op: Exists}
	}
	if r.Key == "" {
		return r, api.Invalid(name, `write "zone=a", "zone!=a", "gpu" or "!gpu"`, fmt.Sprintf("%q names no label", s))
	}
	return r, nil
}

// ParseRetry reads "3", "3:start_failed,no_room" or "3:node_lost": at most so many
// attempts, after these codes. node_lost stands for Retry.AfterNodeDeath: only
// for what may run twice.
func ParseRetry(name, s string) (Retry, error) {
	var r Retry
	count, codes, _ := strings.Cut(strings.TrimSpace(s), ":")
	v, err := strconv.ParseUint(count, 10, 8)
	if err != nil || v == 0 {
		return r, api.Invalid(name, `write attempts and codes, as in "3:start_failed,node_lost"`, fmt.Sprintf("%q is not a retry policy", s))
	}
	r.MaxAttempts = uint8(v)
	for c := range strings.SplitSeq(codes, ",") {
		switch c = strings.TrimSpace(c); c {
		case "":
		case string(api.CodeNodeLost):
			r.AfterNodeDeath = true
		default:
			r.Codes = append(r.Codes, c)
		}
	}
	slices.Sort(r.Codes)
	r.Codes = slices.Compact(r.Codes)
	return r, nil
}

// ParseField reads a field's name as String writes it, or as flags and files do.
func ParseField(name, s string) (Field, error) {
	switch s {
	case "port":
		return FieldPorts, nil
	case "require":
		return FieldConstraints, nil
	case "arch":
		return FieldArchitectures, nil
	case "apart":
		return FieldAntiAffinity, nil
	}
	for f := FieldCPU; f < fieldEnd; f++ {
		if f.String() == s {
			return f, nil
		}
	}
	return 0, api.Invalid(name, "use cpu, memory, storage, scratch, pids, ingress, egress, ports, require, arch, apart, deadline, priority, retry, allow or cores",
		fmt.Sprintf("%q is no field of a manifest", s))
}
