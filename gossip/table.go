package gossip

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/faasd-sec/faasd-sec/api"
)

// member is one live member as the table knows it.
type member struct {
	meta  api.NodeMeta
	wire  []byte // meta as it came
	epoch uint64 // of the life that announced meta
	addr  netip.AddrPort
	load  api.NodeLoad // zero until one arrived
	known bool         // load is set
	raw   []byte       // load as it came, nil if it has to be encoded
}

// table is the live members and their loads. Membership changes through join and
// leave only.
type table struct {
	mu      sync.Mutex
	byID    map[string]*member
	ordered []*member        // by ID
	adrift  map[string]drift // loads of no member, by the node they are of
	version uint64           // of the last view made
	dirty   bool             // something changed since
}

func newTable() *table {
	return &table{byID: make(map[string]*member), adrift: make(map[string]drift)}
}

// drift is a load that came before its member, or that one left which was taken
// for dead. A node tells its load when it changes: one that was cut off, did nothing
// meanwhile and came back would be without one until the next exchange of state.
type drift struct {
	load api.NodeLoad
	raw  []byte
}

// maxAdrift bounds them. Only members seal packets, so it takes one to fill it.
const maxAdrift = 1024

// cast keeps a load of no member. mu is held.
func (t *table) cast(l api.NodeLoad, raw []byte) {
	if was, ok := t.adrift[l.Node]; ok && !l.Newer(was.load) {
		return
	}
	if _, ok := t.adrift[l.Node]; !ok && len(t.adrift) >= maxAdrift {
		return
	}
	t.adrift[l.Node] = drift{l, raw}
}

// verdict is what became of a load.
type verdict int

const (
	loadTaken verdict = iota
	loadStale         // not newer than what is known
	loadStray         // no member, or of an earlier life of it
)

// join adds a member or renews what it says of itself. A load of an earlier life
// goes. wire is kept.
func (t *table) join(meta api.NodeMeta, wire []byte, epoch uint64, addr netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.byID[meta.ID]
	if m == nil {
		m = &member{}
		t.byID[meta.ID] = m
		at, _ := t.find(meta.ID)
		t.ordered = slices.Insert(t.ordered, at, m)
	}
	m.meta, m.wire, m.epoch, m.addr = meta, wire, epoch, addr
	if m.known && m.load.Epoch < epoch {
		m.load, m.raw, m.known = api.NodeLoad{}, nil, false
	}
	if d, ok := t.adrift[meta.ID]; ok {
		delete(t.adrift, meta.ID)
		if d.load.Epoch >= epoch && (!m.known || d.load.Newer(m.load)) {
			m.load, m.raw, m.known = d.load, d.raw, true
		}
	}
	t.dirty = true
}

// says reports whether a member's meta is known in just this encoding.
func (t *table) says(id string, wire []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.byID[id]
	return m != nil && bytes.Equal(m.wire, wire)
}

// leave removes a member. Its load is kept for the case that it was not dead.
func (t *table) leave(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m, ok := t.byID[id]
	if !ok {
		return
	}
	if m.known {
		t.cast(m.load, m.raw)
	}
	delete(t.byID, id)
	if at, ok := t.find(id); ok {
		t.ordered = slices.Delete(t.ordered, at, at+1)
	}
	t.dirty = true
}

// find gives id's place in ordered. mu is held.
func (t *table) find(id string) (int, bool) {
	return slices.BinarySearchFunc(t.ordered, id, func(m *member, id string) int { return strings.Compare(m.meta.ID, id) })
}

// observe takes a load if it is a member's and newer than what is known. raw may
// be nil, and is kept otherwise.
func (t *table) observe(l api.NodeLoad, raw []byte) verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.byID[l.Node]
	if m == nil {
		t.cast(l, raw)
		return loadStray
	}
	if l.Epoch < m.epoch {
		return loadStray
	}
	if m.known && !l.Newer(m.load) {
		return loadStale
	}
	m.load, m.raw, m.known = l, raw, true
	t.dirty = true
	return loadTaken
}

// size is the number of live members.
func (t *table) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.ordered)
}

// changed reports whether a new view would differ from the last one.
func (t *table) changed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dirty
}

// view copies the table into an immutable view with the next version.
func (t *table) view() *api.ClusterView {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version++
	t.dirty = false
	v := &api.ClusterView{Version: t.version, Nodes: make([]api.NodeView, len(t.ordered))}
	for i, m := range t.ordered {
		v.Nodes[i] = api.NodeView{Meta: m.meta, Load: m.load}
	}
	return v
}

// state encodes every known load for an exchange with another member.
func (t *table) state(c codec) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := []byte{wireVersion}
	for _, m := range t.ordered {
		if !m.known {
			continue
		}
		if m.raw == nil {
			raw, _, err := c.encodeLoad(m.load)
			if err != nil {
				continue // checked when it was taken in, so this does not happen
			}
			m.raw = raw
		}
		if len(b)+2+len(m.raw) > maxState {
			break
		}
		b = appendState(b, m.raw)
	}
	return b
}

// peer is a member to send to.
type peer struct {
	id   string
	addr netip.AddrPort
}

// listeners are up to n coordinators other than self, beginning with the first
// whose ID is not below from, so that callers with different from share the work.
func (t *table) listeners(self, from string, n int) (out []peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, _ := t.find(from)
	for i := range t.ordered {
		m := t.ordered[(at+i)%len(t.ordered)]
		if len(out) == n {
			break
		}
		if m.meta.ID != self && slices.Contains(m.meta.Roles, api.RoleCoordinator) {
			out = append(out, peer{m.meta.ID, m.addr})
		}
	}
	return out
}

// addresses is where the live members are.
func (t *table) addresses() map[netip.AddrPort]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[netip.AddrPort]bool, len(t.ordered))
	for _, m := range t.ordered {
		out[m.addr] = true
	}
	return out
}

// addressesOf is where the live members with the role are, but for self.
func (t *table) addressesOf(role, self string) (out []netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.ordered {
		if m.meta.ID != self && slices.Contains(m.meta.Roles, role) {
			out = append(out, m.addr)
		}
	}
	return out
}
