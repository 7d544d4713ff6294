package coordinator

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/scaling"
	"github.com/faasd-sec/faasd-sec/store"
)

const (
	controlEvery = 500 * time.Millisecond
	holdFor      = time.Minute      // that nodes keep replicas when they hear nothing more
	holdAgain    = 15 * time.Second // between orders that change nothing
	orderTimeout = 5 * time.Second  // for a node to begin what it is to
	orderRounds  = 3                // over nodes that refuse
	firstFor     = 30 * time.Second // that what was deployed may take others' room for its first replica
	setFresh     = 10 * time.Second // that a number set by hand before this controller began is acted on
)

// scaler sees to it that functions with a policy have as many replicas as that
// asks for. Every coordinator counts; one controls.
type scaler struct {
	c     *Coordinator
	kick  chan struct{}
	begun time.Time
	known map[api.FunctionName]*scaled // the controller's own
	other *elsewhere                   // likewise; nil where there are no other coordinators

	controls atomic.Bool // its term is not over
	wanted   sync.Map    // api.FunctionName -> decided, of functions with a policy, in this term
}

// decided is how many replicas the controller wants of a function, since a number
// was last set by hand.
type decided struct {
	want    int // of the current revision
	setAt   int64
	all     int   // of all its revisions
	version int64 // of the record by which that was decided
}

// scaled is what the controller remembers of one function.
type scaled struct {
	memory scaling.Memory
	setAt  int64           // of the number set by hand that memory has
	seen   map[holder]seen // at the last look
	looked time.Time
	rate   float64
	millis float64
	holds  map[holder]holding
	firm   int    // replicas that make no room for other functions
	had    string // the revision that had replicas last, by digest
	why    string
	lacks  string

	beside  map[string]*scaled // of revisions that take a share of the calls, by digest
	rolling int                // replicas wanted of the one that is to follow
}

func newScaled() *scaled {
	return &scaled{holds: map[holder]holding{}, beside: map[string]*scaled{}}
}

// holder is a revision on a node.
type holder struct{ node, revision string }

// seen is what the replicas there had done by then, all in all.
type seen struct {
	at     time.Time // when the node was asked
	served uint64
	micros int64 // of CPU time
	cpu    bool  // micros was asked for
}

// holding is what was last ordered there.
type holding struct {
	hold, firm int
	at         time.Time
}

// firmAt is how many of the replicas that nodes have are firm on node id: those of
// the first nodes, by name, until there are as many as are to be.
func (f *scaled) firmAt(have map[string]int, id string) int {
	left := f.firm
	for _, other := range slices.Sorted(maps.Keys(have)) {
		k := min(have[other], left)
		if other == id {
			return k
		}
		left -= k
	}
	return 0
}

// Lead runs a part of which one coordinator of the cluster is to have one, in this
// one whenever it is its turn, and returns when ctx ends.
type Lead func(ctx context.Context, name string, run func(context.Context) error) error

// startScaler begins to count, and to control when it is this coordinator's turn.
func (c *Coordinator) startScaler() {
	c.scaler = &scaler{c: c, kick: make(chan struct{}, 1)}
	c.spawn(c.scaler.watch)
	c.spawn(func() {
		lead := c.dep.Lead
		if lead == nil {
			lead = func(ctx context.Context, _ string, run func(context.Context) error) error { return run(ctx) }
		}
		if err := lead(c.life, "scaling", c.scaler.control); err != nil && c.life.Err() == nil {
			c.log.Error("replicas are not controlled by this coordinator any more", "err", err)
		}
	})
}

// wake has the controller look at once.
func (s *scaler) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// watch keeps what bounds growth current, in every coordinator.
func (s *scaler) watch() {
	tick := time.NewTicker(controlEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.c.life.Done():
			return
		case <-tick.C:
			s.learn()
		}
	}
}

// learn takes a census for the functions whose replicas are bounded, if there are
// any, and forgets the counters of the others.
func (s *scaler) learn() *census {
	c, looked := s.c, time.Now()
	bounded, cpu := map[string]api.Scale{}, false
	for _, f := range c.dep.Cache.Snapshot().Functions {
		if p, ok := policyOf(f); ok {
			cpu = cpu || p.Type == api.ScaleCPU
			for _, rev := range f.Serving() {
				bounded[rev.Revision] = p
			}
		}
	}
	c.growths.forget(bounded, looked)
	if len(bounded) == 0 {
		return nil
	}
	n := c.count(controlEvery/2, cpu)
	for rev, p := range bounded {
		sum := n.sum(rev)
		c.growths.of(rev, p.Max).learn(p.Max, sum.Ready+sum.Starting, n.asked)
	}
	return n
}

// control is the controller. It ends with ctx.
func (s *scaler) control(ctx context.Context) error {
	s.begun, s.known = time.Now(), map[api.FunctionName]*scaled{}
	if s.c.others != nil {
		s.other = newElsewhere(s.c)
		defer s.other.end()
	}
	s.controls.Store(true)
	defer func() {
		s.wanted.Clear() // another decides from now on
		s.controls.Store(false)
	}()
	s.c.log.Info("this coordinator controls replicas from now on")
	tick := time.NewTicker(controlEvery)
	defer tick.Stop()
	for {
		s.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-s.c.life.Done():
			return nil
		case <-tick.C:
		case <-s.kick:
		}
	}
}

// round looks at every function once.
func (s *scaler) round(ctx context.Context) {
	functions := s.c.dep.Cache.Snapshot().Functions
	for name := range s.known {
		if functions[name] == nil {
			delete(s.known, name)
			s.wanted.Delete(name)
		}
	}
	var wg sync.WaitGroup
	var n *census
	for name, rec := range functions {
		f := s.known[name]
		if f == nil {
			f = newScaled()
			if rec.ReplicasAt < s.begun.Add(-setFresh).UnixMilli() {
				f.setAt = rec.ReplicasAt // it was acted on long ago
			}
			s.known[name] = f
		}
		if _, managed := policyOf(rec); !managed && rec.ReplicasAt == f.setAt && len(f.holds) == 0 && len(rec.Serving()) == 1 {
			continue
		}
		if n == nil {
			if n = s.learn(); n == nil {
				n = s.c.count(controlEvery/2, false)
			}
			n = n.with(s.waiting(ctx))
		}
		wg.Add(1)
		go func() { defer wg.Done(); s.govern(ctx, rec, f, n) }()
	}
	wg.Wait()
}

// govern decides on one function, and has nodes do it.
func (s *scaler) govern(ctx context.Context, rec *store.Function, f *scaled, n *census) {
	r, err := s.c.routeOf(rec.Name)
	if err != nil {
		return // whoever calls it hears why
	}
	s.lapsed(ctx, rec)
	s.drained(ctx, rec)
	f.rolling = 0
	if rec.Next != nil && s.roll(ctx, rec, r, f, n) {
		return // the next round goes by what was stored
	}
	now := time.Now()
	policy, managed := policyOf(rec)
	if !managed {
		s.wanted.Delete(rec.Name)
	}
	if rec.ReplicasAt != f.setAt {
		f.setAt = rec.ReplicasAt
		if rec.Replicas != nil {
			f.memory = f.memory.Set(now, *rec.Replicas)
		}
	} else if !managed { // it was, or is while revisions change
		hold := rec.Next != nil
		for h := range f.holds {
			if !hold {
				delete(f.holds, h)
			}
		}
		if hold {
			_ = s.order(ctx, r, f, n, nil, 0) // logged where it failed
		}
		return
	}
	f.firm = 0
	others := f.rolling
	if managed {
		if policy.Firm {
			f.firm = policy.Min
		}
		others += s.governShares(ctx, rec, r, policy, f, n)
	}
	load := s.loadOf(rec, f, n)
	want := 0
	if managed {
		var d scaling.Decision
		f.memory, d = scaling.Decide(policy, f.memory, now, load)
		if rec.Next != nil && r.former() {
			d.Want = min(d.Want, load.Replicas)
		}
		if want = d.Want; want != load.Replicas && d.Why != f.why {
			f.why = d.Why
			s.c.log.Info("replicas", "function", rec.Name, "want", want, "have", load.Replicas, "why", d.Why)
		}
	}
	if managed {
		s.wanted.Store(rec.Name, decided{want: want, setAt: rec.ReplicasAt, all: want + others, version: rec.Version})
	}
	if err := s.reconcile(ctx, r, f, n, want); err != nil && err.Error() != f.lacks {
		f.lacks = err.Error()
		s.c.log.Warn("fewer replicas than wanted", "function", rec.Name, "want", want, "err", err)
	}
}

// governShares decides on the revisions that take a share of a function's calls:
// each has its share of the minimum, and follows its own load. It tells how many
// replicas they are to have together.
func (s *scaler) governShares(ctx context.Context, rec *store.Function, r *route, policy api.Scale, f *scaled, n *census) (want int) {
	for rev := range f.beside {
		if !serves(rec, rev) {
			delete(f.beside, rev)
		}
	}
	for _, b := range rec.Beside {
		o := r.beside(b.Function.Revision)
		if b.Percent == 0 || o == nil || o.former() {
			continue
		}
		g := f.beside[o.hex]
		if g == nil {
			g = newScaled()
			f.beside[o.hex] = g
		}
		p := policy
		p.Min = max(1, (p.Min*b.Percent+99)/100)
		if g.firm = 0; p.Firm {
			g.firm = p.Min
		}
		var d scaling.Decision
		g.memory, d = scaling.Decide(p, g.memory, time.Now(), s.loadOf(b.Function, g, n))
		want += d.Want
		if err := s.reconcile(ctx, o, g, n, d.Want); err != nil && err.Error() != g.lacks {
			g.lacks = err.Error()
			s.c.log.Warn("fewer replicas than wanted", "function", rec.Name, "revision", o.hex, "want", d.Want, "err", err)
		}
	}
	return want
}

// loadOf sums up what a function does.
func (s *scaler) loadOf(rec *store.Function, f *scaled, n *census) scaling.Load {
	sum := n.sum(rec.Revision)
	l := scaling.Load{Replicas: sum.Ready + sum.Starting, InFlight: sum.InFlight + n.waiting[rec.Revision], Slots: sum.Slots}
	if took := n.asked.Sub(f.looked); took >= controlEvery/2 {
		rate, millis := 0.0, 0.0
		before := f.seen
		f.seen = make(map[holder]seen, len(n.nodes)) // nothing of nodes and revisions that are gone
		for node, t := range n.nodes {
			r, key := t.of(rec.Revision), holder{node, rec.Revision}
			was, known := before[key]
			// A node that did not answer for a while tells then of all of it.
			if since := t.at.Sub(was.at).Seconds(); known && since > 0 {
				if r.Served > was.served {
					rate += float64(r.Served-was.served) / since
				}
				if t.cpu && was.cpu && r.CPUMicros > was.micros {
					millis += float64(r.CPUMicros-was.micros) / 1000 / since
				}
			}
			f.seen[key] = seen{at: t.at, served: r.Served, micros: r.CPUMicros, cpu: t.cpu}
		}
		if !f.looked.IsZero() {
			// Two thirds of what was, so that one look counts for little.
			f.rate, f.millis = smooth(f.rate, rate), smooth(f.millis, millis)
		}
		f.looked = n.asked
	}
	l.Rate, l.CPU = f.rate, f.millis
	return l
}

// smooth averages over a few looks, and comes to nothing.
func smooth(was, now float64) float64 {
	if v := was + (now-was)/3; v > 0.05 {
		return v
	}
	return 0
}
