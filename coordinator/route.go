package coordinator

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/placement"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// route is a function as the hot path needs it, made once per stored record.
type route struct {
	rec      *store.Function
	whole    *store.Function // the function's record, of which rec is a revision
	others   []*route        // of a function's current revision: those that serve beside it
	latest   bool            // nothing newer was deployed
	stated   time.Time       // when the traffic statement that names it ends; zero for none
	offered  string          // sequence of the function's traffic statement; empty for none
	offers   time.Time       // when that ends
	name     api.FunctionName
	revision sealed.Digest
	hex      string
	target   string             // NAME?rev=HEX&seq=N: a node with an older descriptor asks for this one
	invoke   string             // path and target of an invocation
	request  placement.Request  // without seed and pending
	limits   api.Resources      // the descriptor's
	subject  ask.Subject        // of manifests
	unbound  *demand            // of an invocation of a function without bounds
	defaults mergedDefaults     // of one with
	plain    *api.PlainSettings // nil for a sealed function
	gate     gate.Function      // of a sealed function
	bound    time.Duration      // of one invocation in a ready sandbox
	calls    *atomic.Uint64     // of the function since this coordinator started
	freed    freedSlots
	growth   *growth // nil where nodes start as many replicas as invocations need
	hosting  hosting
	warm     atomic.Pointer[warmth]
	maxAge   time.Duration // of queued requests, 0 for none
}

// routeOf finds a function in the cache that the store's watch keeps current.
func (c *Coordinator) routeOf(name api.FunctionName) (*route, error) {
	rec := c.dep.Cache.Get(name)
	if rec == nil {
		c.routes.Delete(name)
		c.calls.Delete(name)
		e := api.Errorf(api.CodeNotFound, "there is no function %q", name.Short())
		e.Field, e.Remedy = "name", "faasd-sec list shows what is deployed"
		return nil, e
	}
	if v, ok := c.routes.Load(name); ok && v.(*route).rec == rec {
		return v.(*route), nil
	}
	r, err := newRoute(rec)
	if err != nil {
		return nil, err
	}
	for _, other := range rec.Serving()[1:] {
		o, err := newRoute(other)
		if err != nil {
			return nil, err
		}
		r.others = append(r.others, o)
	}
	policy, bounded := policyOf(rec)
	for _, o := range append([]*route{r}, r.others...) {
		o.whole, o.calls = rec, c.callsOf(name)
		o.latest = o.rec.Sequence >= rec.Newest()
		o.stated = statedUntil(rec, o)
		if t := trafficOf(rec); t != nil {
			o.offered, o.offers = strconv.FormatUint(t.Sequence, 10), time.Unix(int64(t.Expires), 0)
		}
		if bounded {
			o.growth = c.growths.of(o.hex, policy.Max)
		}
	}
	c.routes.Store(name, r)
	return r, nil
}

// forgetRemoved drops what is kept of functions that are no more, and that nobody
// has called since.
func (c *Coordinator) forgetRemoved() {
	for _, kept := range []*sync.Map{&c.routes, &c.calls} {
		kept.Range(func(name, _ any) bool {
			if c.dep.Cache.Get(name.(api.FunctionName)) == nil {
				kept.Delete(name)
			}
			return true
		})
	}
}

// former reports whether a sandbox for r would get no keys: the key broker releases
// those of the latest revision, and of others that a traffic statement names.
func (r *route) former() bool {
	return r.plain == nil && !r.latest && !time.Now().Before(r.stated)
}

// beside finds a revision that serves; nil where it does not.
func (r *route) beside(revision string) *route {
	if r.hex == revision {
		return r
	}
	for _, o := range r.others {
		if o.hex == revision {
			return o
		}
	}
	return nil
}

// sealedFor finds the revision that a message was sealed for, or the current one.
func (r *route) sealedFor(revision sealed.Digest) *route {
	if r.revision != revision {
		for _, o := range r.others {
			if o.revision == revision {
				return o
			}
		}
	}
	return r
}

// renew goes by the function's record as it is now, for a task that waits. What was
// sealed for a revision that does not serve any more is refused; a plain function's
// call goes to the one that does.
func (c *Coordinator) renew(t *task) error {
	r := t.r
	now, err := c.routeOf(r.name)
	switch {
	case err != nil:
		return err
	case now == r || now.beside(r.hex) != nil:
		return nil
	case now.plain != nil && t.call != nil:
		t.r, t.known = now, now.unbound
		return nil
	}
	e := api.Errorf(api.CodeStaleRevision, "another revision of %s took its place while this waited", r.name)
	e.Remedy = "fetch the descriptor, verify it and seal again"
	return e
}

func newRoute(rec *store.Function) (*route, error) {
	if rec.Plain != nil {
		return newPlainRoute(rec)
	}
	signed, err := sealed.ParseDescriptor(rec.Descriptor)
	if err != nil {
		return nil, api.Wrap(api.CodeInternal, err, "a stored descriptor does not parse")
	}
	d := signed.Unverified() // verified when it was stored; agents verify again
	rev, err := d.Revision()
	if err != nil {
		return nil, api.Wrap(api.CodeInternal, err, "a stored descriptor has no revision")
	}
	cfg := d.Config
	lim := api.Resources{CPU: int64(cfg.Resources.CPUMillis), Memory: int64(cfg.Resources.MemoryBytes), PIDs: int64(cfg.Resources.PIDs)}
	limits := lim
	limits.Tmp, limits.ReadBps, limits.WriteBps = int64(cfg.Resources.TmpBytes), int64(cfg.Resources.IOReadBPS), int64(cfg.Resources.IOWriteBPS)
	owner, err := sealed.ParseFingerprint(rec.Owner)
	if err != nil {
		return nil, api.Wrap(api.CodeInternal, err, "a stored owner does not parse")
	}
	target := string(rec.Name) + "?rev=" + rev.String() + "&seq=" + strconv.FormatUint(d.Sequence, 10)
	r := &route{
		rec: rec, limits: limits, subject: ask.Subject{Function: rec.Name, Revision: rev, Owner: owner}, name: rec.Name, revision: rev, hex: rev.String(), target: target, invoke: api.NodePathInvoke + target,
		request: placement.Request{
			Revision: rev.String(), Image: cfg.Image, Resources: lim.Add(api.AgentOverhead()),
			Tiers: cfg.Policy.Attestation, Labels: cfg.Labels,
		},
		gate:  gate.Function{Name: rec.Name, Revision: rev, Callers: &d.Config.Policy},
		bound: api.InvocationBound(cfg.ReadMS, cfg.WriteMS, cfg.ExecMS) + api.Milliseconds(cfg.StartMS, 0) + 2*time.Second,
	}
	r.maxAge = api.Milliseconds(d.MaxQueuedMS, 0)
	r.unbound = &demand{request: r.request}
	return r, nil
}
