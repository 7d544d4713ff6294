package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Bounds of what one task can ask for. They are far above any machine, and keep
// sums of reservations from overflowing.
const (
	maxAmount    = 1 << 50
	MaxTaskPorts = 64
	MaxTaskCores = 64
	MaxPriority  = 9
)

// ParseNeeds reads a HeaderNeeds strictly: what is not understood could be a need
// that then nobody would meet.
func ParseNeeds(b []byte) (Needs, error) {
	var n Needs
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&n); err != nil {
		return Needs{}, Invalid("needs", "send Needs as JSON", err.Error())
	}
	if d.More() {
		return Needs{}, Invalid("needs", "send one value", "there is more than one")
	}
	return n, nil
}

// Settle checks n and brings it into the one form that equal needs have: what is
// not asked for of cpu, memory, pids, tmp and block IO is the function's own, as its
// descriptor says, storage is the size of the writable tmpfs, ports are in order
// and counted.
// Settling twice changes nothing.
func (n Needs) Settle(function Resources) (Needs, error) {
	if raw, err := hex.DecodeString(n.Task); err != nil || len(raw) != 16 && len(raw) != 0 || n.Task != hex.EncodeToString(raw) {
		return Needs{}, Invalid("needs.task", "use 32 lower-case hex digits", fmt.Sprintf("it has %d characters", len(n.Task)))
	}
	if n.Priority < 0 || n.Priority > MaxPriority || n.Deadline < 0 {
		return Needs{}, Invalid("needs", "use a priority of 0 to 9 and a deadline of 0 or later", "one is out of range")
	}
	r := &n.Resources
	for _, v := range []struct {
		amount *int64
		own    int64
	}{
		{&r.CPU, function.CPU}, {&r.Memory, function.Memory}, {&r.PIDs, function.PIDs},
		{&r.ReadBps, function.ReadBps}, {&r.WriteBps, function.WriteBps},
		{&r.Tmp, 0}, {&r.Storage, 0}, {&r.Scratch, 0}, {&r.Ingress, 0}, {&r.Egress, 0}, {&r.Ports, 0}, {&r.Cores, 0},
	} {
		if *v.amount < 0 || *v.amount > maxAmount {
			return Needs{}, Invalid("needs.resources", "use numbers of 0 or more", "an amount is out of range")
		}
		if *v.amount == 0 {
			*v.amount = v.own
		}
	}
	if r.Cores > MaxTaskCores {
		return Needs{}, Invalid("needs.resources.cores", fmt.Sprintf("ask for at most %d", MaxTaskCores), "there are more")
	}
	if r.CPU <= 0 || r.Memory <= 0 || r.PIDs <= 0 {
		return Needs{}, Invalid("needs.resources", "ask for cpu, memory and pids", "one is missing, and the function has none of its own")
	}
	switch {
	case r.Storage > 0:
		r.Tmp = r.Storage
	case r.Tmp == 0:
		if r.Tmp = function.Tmp; r.Tmp == 0 {
			r.Tmp = min(DefaultTmpBytes, function.Memory/2)
		}
		if r.Memory < function.Memory {
			r.Tmp = min(r.Tmp, r.Memory/2)
		}
	}
	r.Storage = r.Tmp
	if r.Tmp > r.Memory {
		return Needs{}, Invalid("needs.resources.storage", "ask for more memory, of which it is part", "storage in memory is larger than the memory")
	}
	ports, count, err := settlePorts(n.Ports)
	if err != nil {
		return Needs{}, err
	}
	if r.Ports != 0 && r.Ports != count {
		return Needs{}, Invalid("needs.ports", "list as many as are counted", fmt.Sprintf("%d are counted, %d listed", r.Ports, count))
	}
	n.Ports, r.Ports = ports, count
	n.Allow, err = settleReach(n.Allow)
	if err == nil && len(n.Allow) > 0 && (r.Ingress == 0 || r.Egress == 0) {
		err = Invalid("needs.allow", "ask for ingress and egress, or leave the list out", "a list of what may be opened without bandwidth to open it")
	}
	return n, err
}

// settleReach checks and sorts a list of what may be opened. Its texts stay where
// they are, and are not quoted: they may be a manifest's.
func settleReach(list []string) ([]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	if len(list) > MaxReach {
		return nil, Invalid("needs.allow", fmt.Sprintf("list at most %d", MaxReach), "there are more")
	}
	var room [64]byte
	for i, s := range list {
		r, err := parseReach(s)
		if err == nil && string(r.AppendTo(room[:0])) != s {
			err = errors.New("is not written as it is shown")
		}
		if err != nil {
			return nil, Invalid("needs.allow", `write each as in "10.0.0.0/8:443/tcp"`, fmt.Sprintf("entry %d %v", i+1, err))
		}
	}
	list = slices.Sorted(slices.Values(list))
	return slices.Compact(list), nil
}

// settlePorts sorts what is asked for and adds up what is alike.
func settlePorts(ports []PortNeed) (out []PortNeed, count int64, err error) {
	for _, p := range ports {
		switch {
		case p.Protocol != ProtocolTCP && p.Protocol != ProtocolUDP:
			err = Invalid("needs.ports.protocol", "use tcp or udp", fmt.Sprintf("%q", p.Protocol))
		case p.Number < 0 || p.Number > 65535:
			err = Invalid("needs.ports.number", "use 1 to 65535, or 0 for any", fmt.Sprint(p.Number))
		case p.Count < 1 || p.Count > MaxTaskPorts || p.Number > 0 && p.Count != 1:
			err = Invalid("needs.ports.count", fmt.Sprintf("use 1 to %d, and 1 for a port by number", MaxTaskPorts), fmt.Sprint(p.Count))
		}
		if err != nil {
			return nil, 0, err
		}
		at, known := slices.BinarySearchFunc(out, p, func(a, b PortNeed) int {
			return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
		})
		switch {
		case !known:
			out = slices.Insert(out, at, p)
		case p.Number > 0:
			return nil, 0, Invalid("needs.ports", "ask for each port once", fmt.Sprintf("%d/%s is there twice", p.Number, p.Protocol))
		default:
			out[at].Count += p.Count
		}
		if count += int64(p.Count); count > MaxTaskPorts {
			return nil, 0, Invalid("needs.ports", fmt.Sprintf("ask for at most %d", MaxTaskPorts), "there are more")
		}
	}
	return out, count, nil
}

// Kind is what sandboxes of like needs have in common: n without what is one
// task's alone.
func (n Needs) Kind() Needs {
	return Needs{Resources: n.Resources, Ports: n.Ports, Allow: n.Allow, Apart: n.Apart}
}

// Plain reports whether settled needs are those of any invocation of the function:
// then sandboxes made by its descriptor alone serve them.
func (n Needs) Plain(function Resources) bool {
	own, err := Needs{}.Settle(function)
	return err == nil && !n.Apart && len(n.Ports)+len(n.Allow) == 0 && n.Resources == own.Resources
}

// WarmKey names the sandboxes of a revision (digest, hex) that serve settled needs:
// under it a NodeLoad counts their free slots.
func WarmKey(revision string, n Needs, function Resources) string {
	if n.Plain(function) {
		return RevisionKey(revision)
	}
	return NeedsKey(revision, n)
}

// NeedsKey is WarmKey for needs that are not plain. It has 16 hex digits.
func NeedsKey(revision string, n Needs) string {
	h := sha256.New()
	h.Write([]byte(revision))
	// Its fields are numbers and words from a list: it always encodes, and equal
	// needs alike.
	_ = json.NewEncoder(h).Encode(n.Kind())
	return hex.EncodeToString(h.Sum(nil)[:8])
}
