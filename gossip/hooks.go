package gossip

import (
	"bytes"
	"net/netip"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/hashicorp/memberlist"
)

// hooks is what memberlist calls. Membership hooks run under memberlist's lock
// and must not call back into it.
type hooks struct{ m *Mesh }

var (
	_ memberlist.Delegate         = hooks{}
	_ memberlist.EventDelegate    = hooks{}
	_ memberlist.AliveDelegate    = hooks{}
	_ memberlist.ConflictDelegate = hooks{}
)

// Kinds of user messages, the first byte of each.
const (
	kindRelay  = 1 // a load to pass on
	kindDirect = 2 // a load for the receiver alone
)

// NodeMeta is this member's meta, which fits the limit by construction.
func (h hooks) NodeMeta(int) []byte {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return h.m.metaWire
}

// NotifyMsg takes a load from a packet.
func (h hooks) NotifyMsg(b []byte) {
	if len(b) < 2 || (b[0] != kindRelay && b[0] != kindDirect) {
		h.m.count.loadsMalformed.Add(1)
		return
	}
	msg := bytes.Clone(b) // the buffer is memberlist's
	l, err := h.m.codec.decodeLoad(msg[1:])
	if err != nil {
		h.m.count.loadsMalformed.Add(1)
		return
	}
	if h.m.receive(l, msg[1:]) && msg[0] == kindRelay {
		h.m.queue.QueueBroadcast(loadMessage{node: l.Node, msg: msg})
	}
}

// GetBroadcasts fills what room a packet has left.
func (h hooks) GetBroadcasts(overhead, limit int) [][]byte {
	return h.m.queue.GetBroadcasts(overhead, limit)
}

// LocalState is every load known here.
func (h hooks) LocalState(bool) []byte { return h.m.table.state(h.m.codec) }

// MergeRemoteState takes every load known there. memberlist has merged the
// members by then.
func (h hooks) MergeRemoteState(b []byte, _ bool) {
	err := eachState(b, func(raw []byte) {
		l, err := h.m.codec.decodeLoad(raw)
		if err != nil {
			h.m.count.loadsMalformed.Add(1)
			return
		}
		h.m.receive(l, bytes.Clone(raw))
	})
	if err != nil {
		h.m.count.loadsMalformed.Add(1)
	}
}

// NotifyAlive refuses members that do not make sense. Each member hears each
// announcement some dozen times over, so that what was decoded before is let
// through by comparison.
func (h hooks) NotifyAlive(n *memberlist.Node) error {
	if h.m.table.says(n.Name, n.Meta) {
		return nil
	}
	if _, _, err := h.m.codec.decodeMeta(n.Name, n.Meta); err != nil {
		h.m.count.membersRefused.Add(1)
		return err
	}
	return nil
}

// NotifyConflict counts a name that is claimed from two addresses.
func (h hooks) NotifyConflict(existing, other *memberlist.Node) {
	h.m.count.conflicts.Add(1)
	h.m.logger.Warn("gossip: two members claim one name; give each node its own id",
		"node", existing.Name, "known", existing.Address(), "other", other.Address())
}

// NotifyJoin takes a member in.
func (h hooks) NotifyJoin(n *memberlist.Node) {
	meta, epoch, err := h.m.codec.decodeMeta(n.Name, n.Meta)
	if err != nil { // NotifyAlive has let it through, so this does not happen
		return
	}
	h.m.table.join(meta, n.Meta, epoch, nodeAddr(n))
	h.m.nudge()
}

// NotifyUpdate takes a member's new meta.
func (h hooks) NotifyUpdate(n *memberlist.Node) { h.NotifyJoin(n) }

// NotifyLeave drops a member that left or died.
func (h hooks) NotifyLeave(n *memberlist.Node) {
	h.m.table.leave(n.Name)
	h.m.nudge()
}

func nodeAddr(n *memberlist.Node) netip.AddrPort {
	a, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(a.Unmap(), n.Port)
}

// loadMessage is a load in the queue; a newer one of the same node replaces it.
type loadMessage struct {
	node string
	msg  []byte
}

var _ memberlist.NamedBroadcast = loadMessage{}

func (b loadMessage) Name() string    { return b.node }
func (b loadMessage) Message() []byte { return b.msg }
func (b loadMessage) Finished()       {}
func (b loadMessage) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(loadMessage)
	return ok && o.node == b.node
}

// receive takes a load that came over the mesh; false if it brought nothing.
func (m *Mesh) receive(l api.NodeLoad, raw []byte) bool {
	if l.Node == m.id {
		m.overrule(l)
		return false
	}
	switch m.table.observe(l, raw) {
	case loadStale:
		m.count.loadsStale.Add(1)
		return false
	case loadStray:
		m.count.loadsStray.Add(1)
		return false
	}
	m.count.loadsReceived.Add(1)
	m.nudge()
	return true
}
