package coordinator

import (
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
)

// growth keeps invocations from starting more replicas of a revision than its
// policy allows: each that may start one holds a permit until it is known whether
// it did, and what was started counts until a census has seen it. It is exact for
// one coordinator; several may together start more, which the controller takes
// back.
type growth struct {
	mu      sync.Mutex
	most    int
	known   int         // by the last census
	asked   time.Time   // when that began
	started []time.Time // since
	out     int         // permits
}

// take gives a permit, if there may be another replica.
func (g *growth) take() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known+len(g.started)+g.out >= g.most {
		return false
	}
	g.out++
	return true
}

// settle gives a permit back; began says that a replica was started with it.
func (g *growth) settle(began bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.out--
	if began {
		g.started = append(g.started, time.Now())
	}
}

// begun counts replicas that the controller had started.
func (g *growth) begun(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range n {
		g.started = append(g.started, time.Now())
	}
}

// learn takes what a census says.
func (g *growth) learn(most, known int, asked time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.most = most
	if !asked.After(g.asked) {
		return
	}
	g.known, g.asked = known, asked
	kept := g.started[:0]
	for _, at := range g.started {
		if at.After(asked) {
			kept = append(kept, at)
		}
	}
	g.started = kept
}

// more is how many replicas beyond those known have been started, or may be.
func (g *growth) more() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.started) + g.out
}

// existingOnly tells a node to start nothing for an invocation.
var existingOnly = relay.Header{Name: api.HeaderExisting, Value: "1"}

// permit decides whether an attempt of t may have a node start a replica. settle is
// called after the attempt.
func (c *Coordinator) permit(t *task) (existing bool, settle func(began bool)) {
	g := t.r.growth
	switch {
	case t.r.former: // a sandbox for it would get no keys
		return true, func(bool) {}
	case g == nil || len(t.needs().headers) > 0: // a sandbox for a task's own needs is no replica
		return false, func(bool) {}
	case g.take():
		return false, g.settle
	}
	return true, func(bool) {}
}

// growthOf finds the counter of a revision whose replicas are bounded.
func (c *Coordinator) growthOf(revision string, most int) *growth {
	v, ok := c.growths.Load(revision)
	if !ok {
		v, _ = c.growths.LoadOrStore(revision, &growth{most: most})
	}
	return v.(*growth)
}
