package gossip

import (
	"fmt"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/hashicorp/memberlist"
)

// maxMeta is the room memberlist has for what a member says of itself.
const maxMeta = memberlist.MetaMaxSize

// maxID bounds a member's name, which is repeated in every message about it.
const maxID = 128

// wireMeta is a NodeMeta on the wire. The ID is not in it: it is the member's
// name. Epoch lets loads of an earlier life be dropped before the first load of
// this one arrives.
type wireMeta struct {
	_        struct{} `cbor:",toarray"`
	Version  uint8
	Epoch    uint64
	Addr     string
	Roles    []string
	Arch     string
	Tier     string
	Labels   map[string]string
	Capacity []int64 // packResources
	Local    string
}

const (
	fewAmounts = 6  // there always, and all that earlier releases wrote
	allAmounts = 11 // of which zeros at the end are left out
)

// packResources lists amounts in the order of the wire. Earlier releases skip
// what follows the first six, and nodes of theirs have none of it.
func packResources(r api.Resources) []int64 {
	v := []int64{r.CPU, r.Memory, r.PIDs, r.Tmp, r.ReadBps, r.WriteBps, r.Scratch, r.Ingress, r.Egress, r.Ports, r.Cores}
	for len(v) > fewAmounts && v[len(v)-1] == 0 {
		v = v[:len(v)-1]
	}
	return v
}

// unpackResources reads the one form that packResources gives to each.
func unpackResources(v []int64) (api.Resources, error) {
	if len(v) < fewAmounts || len(v) > allAmounts || len(v) > fewAmounts && v[len(v)-1] == 0 {
		return api.Resources{}, fmt.Errorf("%w: %d amounts", errMalformed, len(v))
	}
	for _, amount := range v {
		if amount < 0 {
			return api.Resources{}, fmt.Errorf("%w: a negative amount", errMalformed)
		}
	}
	var all [allAmounts]int64
	copy(all[:], v)
	return api.Resources{CPU: all[0], Memory: all[1], PIDs: all[2], Tmp: all[3], ReadBps: all[4], WriteBps: all[5],
		Scratch: all[6], Ingress: all[7], Egress: all[8], Ports: all[9], Cores: all[10]}, nil
}

// encodeMeta refuses what does not fit and says which part is to blame.
func (c codec) encodeMeta(m api.NodeMeta, epoch uint64) ([]byte, error) {
	if m.ID == "" || len(m.ID) > maxID {
		return nil, api.Invalid("meta.id", "name the node in 1 to 128 bytes", fmt.Sprintf("the ID has %d bytes", len(m.ID)))
	}
	if len(m.Roles) == 0 {
		return nil, api.Invalid("meta.roles", `give a role, such as "node"`, "a member without a role")
	}
	w := wireMeta{
		Version: wireVersion, Epoch: epoch, Addr: m.Addr, Roles: m.Roles, Arch: m.Arch, Tier: m.Tier,
		Labels: m.Labels, Capacity: packResources(m.Capacity), Local: m.Local,
	}
	if w.Labels == nil {
		w.Labels = map[string]string{}
	}
	for _, v := range w.Capacity {
		if v < 0 {
			return nil, api.Invalid("meta.capacity", "write 0 or more", "a negative capacity")
		}
	}
	b, err := c.enc.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("gossip: encode meta: %w", err)
	}
	if len(b) > maxMeta {
		return nil, c.tooLong(w, len(b))
	}
	if _, _, err := c.decodeMeta(m.ID, b); err != nil { // others would refuse it
		return nil, api.Invalid("meta", "use valid UTF-8 and at most 64 labels and roles", err.Error())
	}
	return b, nil
}

// tooLong names the part of w that takes the most room.
func (c codec) tooLong(w wireMeta, total int) error {
	parts := []struct {
		field, remedy string
		value         any
	}{
		{"meta.labels", "shorten or drop labels", w.Labels},
		{"meta.addr", "use a shorter address", w.Addr},
		{"meta.roles", "drop roles", w.Roles},
		{"meta.arch", "write a GOARCH", w.Arch},
		{"meta.tier", "write the name of an evidence type", w.Tier},
	}
	worst, size := parts[0], 0
	for _, p := range parts {
		if b, err := c.enc.Marshal(p.value); err == nil && len(b) > size {
			worst, size = p, len(b)
		}
	}
	return api.Invalid(worst.field, worst.remedy, fmt.Sprintf(
		"what a member says of itself takes %d bytes, at most %d; %d of them are %s", total, maxMeta, size, worst.field))
}

// decodeMeta reads what encodeMeta wrote for the member of the given name.
func (c codec) decodeMeta(name string, b []byte) (m api.NodeMeta, epoch uint64, err error) {
	if name == "" || len(name) > maxID {
		return m, 0, fmt.Errorf("%w: name of %d bytes", errMalformed, len(name))
	}
	if len(b) > maxMeta {
		return m, 0, fmt.Errorf("%w: meta of %d bytes", errMalformed, len(b))
	}
	var w wireMeta
	if err := c.dec.Unmarshal(b, &w); err != nil {
		return m, 0, fmt.Errorf("%w: meta: %w", errMalformed, err)
	}
	if w.Version != wireVersion {
		return m, 0, fmt.Errorf("%w: meta of version %d", errMalformed, w.Version)
	}
	capacity, err := unpackResources(w.Capacity)
	if err != nil {
		return m, 0, err
	}
	m = api.NodeMeta{ID: name, Addr: w.Addr, Roles: w.Roles, Arch: w.Arch, Tier: w.Tier, Capacity: capacity, Local: w.Local}
	if len(w.Labels) > 0 {
		m.Labels = w.Labels
	}
	return m, w.Epoch, nil
}
