package coordinator

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
)

// growth keeps invocations from starting more replicas of a revision than its
// policy allows: each that may start one takes a permit, which counts until a
// census shows what came of it, or the node says that it started none. It is exact
// for one coordinator; several may together start more, which the controller takes
// back.
type growth struct {
	wanted time.Time // when a route asked for it last; guarded by growths

	mu      sync.Mutex
	most    int
	known   int         // by the last census
	asked   time.Time   // when that began
	started []time.Time // since, or permitted
}

// admitWithin is how long a node may take from hearing of an invocation to having
// reserved a sandbox for it, which a census then shows.
const admitWithin = 500 * time.Millisecond

// take gives a permit, if there may be another replica.
func (g *growth) take() (at time.Time, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known+len(g.started) >= g.most {
		return at, false
	}
	at = time.Now()
	g.started = append(g.started, at)
	return at, true
}

// unused gives a permit back with which nothing was started.
func (g *growth) unused(at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.started, at); i >= 0 {
		g.started = slices.Delete(g.started, i, i+1)
	}
}

// begun counts replicas that the controller had started: the next census shows them.
func (g *growth) begun(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range n {
		g.started = append(g.started, time.Now().Add(-admitWithin))
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
	g.started = slices.DeleteFunc(g.started, func(at time.Time) bool { return at.Add(admitWithin).Before(asked) })
}

// more is how many replicas beyond those known have been started, or may be.
func (g *growth) more() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.started)
}

// existingOnly tells a node to start nothing for an invocation.
var existingOnly = relay.Header{Name: api.HeaderExisting, Value: "1"}

// permit decides whether an attempt of t may have a node start a replica. One that
// goes where a slot is free, as far as is known, needs none to be started. settle is
// called after the attempt.
func (c *Coordinator) permit(t *task, warm bool) (existing bool, settle func(began bool)) {
	g := t.r.growth
	switch {
	case t.r.former(): // a sandbox for it would get no keys
		return true, func(bool) {}
	case g == nil || len(t.needs().headers) > 0: // a sandbox for a task's own needs is no replica
		return false, func(bool) {}
	case warm:
		return true, func(bool) {}
	}
	at, ok := g.take()
	if !ok {
		return true, func(bool) {}
	}
	return false, func(began bool) {
		if !began {
			g.unused(at)
		}
	}
}

// growths are those of the revisions whose replicas are bounded.
type growths struct {
	mu sync.Mutex
	by map[string]*growth // by revision digest
}

// of finds the growth of a revision, or makes it.
func (g *growths) of(revision string, most int) *growth {
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.by[revision]
	if one == nil {
		one = &growth{most: most}
		if g.by == nil {
			g.by = map[string]*growth{}
		}
		g.by[revision] = one
	}
	one.wanted = time.Now()
	return one
}

// forget drops those of revisions that are not bounded, as of a look at all functions
// that began at looked. One that was asked for since stays: it is of a function that
// the look may not have seen, and its route goes by it for as long as it serves.
func (g *growths) forget(bounded map[string]api.Scale, looked time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.by, func(revision string, one *growth) bool {
		_, ok := bounded[revision]
		return !ok && one.wanted.Before(looked)
	})
}
