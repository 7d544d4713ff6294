package coordinator

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
)

// Dialer opens a connection to a member, a node unless said otherwise, and makes
// sure that it is that member.
type Dialer interface {
	DialNode(ctx context.Context, node api.NodeMeta) (net.Conn, error)
}

// peer is one member as this coordinator talks to it.
type peer struct {
	id, addr string // the latter with the address on this machine, if any
	up       *relay.Upstream
	epoch    atomic.Uint64 // of the node's daemon, as last seen
	inFlight atomic.Int64
	load     atomic.Pointer[string] // the last that a reply carried
}

// peers keeps one peer for each node it was asked for.
type peers struct {
	life context.Context
	dial Dialer
	mu   sync.RWMutex
	byID map[string]*peer
}

func newPeers(life context.Context, d Dialer) *peers {
	return &peers{life: life, dial: d, byID: map[string]*peer{}}
}

// get returns the peer of a node, made anew when the node moved. Connections to
// a former life of its daemon are closed.
func (p *peers) get(v api.NodeView) *peer {
	e := p.of(v.Meta)
	if was := e.epoch.Load(); v.Load.Epoch > was && e.epoch.CompareAndSwap(was, v.Load.Epoch) && was != 0 {
		e.up.Close()
	}
	return e
}

func (p *peers) of(m api.NodeMeta) *peer {
	p.mu.RLock()
	e := p.byID[m.ID]
	p.mu.RUnlock()
	if e != nil && e.addr == m.Addr+m.Local {
		return e
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e = p.byID[m.ID]; e != nil && e.addr == m.Addr+m.Local {
		return e
	}
	if e != nil {
		e.up.Close()
	}
	e = &peer{id: m.ID, addr: m.Addr + m.Local}
	e.up = relay.NewUpstream(p.life, func(ctx context.Context) (net.Conn, error) {
		return p.dial.DialNode(ctx, m)
	}, relay.DefaultOptions())
	p.byID[m.ID] = e
	return e
}

// inFlight is how many invocations this coordinator has at a node.
func (p *peers) inFlight(id string) int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if e := p.byID[id]; e != nil {
		return int(e.inFlight.Load())
	}
	return 0
}

// inFlightAll is how many it has at all nodes, those included that are members
// no more.
func (p *peers) inFlightAll() (sum int64) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, e := range p.byID {
		sum += e.inFlight.Load()
	}
	return sum
}

// prune closes connections to nodes that are members no more.
func (p *peers) prune(view *api.ClusterView) {
	live := make(map[string]bool, len(view.Nodes))
	for _, n := range view.Nodes {
		live[n.Meta.ID] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, e := range p.byID {
		if !live[id] && e.inFlight.Load() == 0 {
			e.up.Close()
			delete(p.byID, id)
		}
	}
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.byID {
		e.up.Close()
	}
}

// prune forgets now and then what is over: connections to nodes that have gone,
// tasks that could not be shown again, and functions that were removed.
func (c *Coordinator) prune() {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-c.life.Done():
			return
		case <-tick.C:
			c.peers.prune(c.dep.Mesh.Snapshot())
			if c.others != nil {
				c.others.prune(c.dep.Mesh.Snapshot())
			}
			c.tasks.expire(time.Now())
			c.forgetRemoved()
		}
	}
}
