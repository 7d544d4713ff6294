package coordinator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// share chooses the revision that takes a call of a plain function: by the call's
// id, so that the same id comes to the same revision, in every coordinator.
func (r *route) share(call string) *route {
	if len(r.others) == 0 {
		return r
	}
	at := api.CallSlot(call)
	for _, b := range r.rec.Beside {
		if at -= b.Percent; at < 0 {
			if o := r.beside(b.Function.Revision); o != nil {
				return o
			}
		}
	}
	return r
}

// serveTraffic serves POST /v1/functions/NAME/traffic.
func (c *Coordinator) serveTraffic(ctx *fasthttp.RequestCtx, path string) error {
	name, err := api.ParseFunctionName(path)
	if err != nil {
		return err
	}
	var t api.Traffic
	if err := c.ownerSays(ctx, name, &t); err != nil {
		return err
	}
	if len(t.Statement) > 0 {
		return c.setStatement(c.life, name, t.Statement)
	}
	return c.setTraffic(c.life, name, t.Percent)
}

// setTraffic divides the calls of a plain function among revisions that serve or
// did, named by the beginnings of their digests. The current one stays that if it
// gets a share; else the one with the most is.
func (c *Coordinator) setTraffic(ctx context.Context, name api.FunctionName, percent map[string]int) error {
	if err := c.divideBy(ctx, name, func(f *store.Function, past []*store.Function) error { return divide(f, past, percent) }); err != nil {
		return err
	}
	c.log.Info("calls are divided", "function", name, "percent", percent)
	return nil
}

// divideBy changes a function's record by edit, which may bring revisions of its
// past back, and has nodes let go of what does not serve any more.
func (c *Coordinator) divideBy(ctx context.Context, name api.FunctionName, edit func(f *store.Function, past []*store.Function) error) error {
	past, err := c.past(ctx, name)
	if err != nil {
		return err
	}
	var before, after store.Function
	err = c.change(ctx, name, func(f *store.Function) error {
		before = *f
		if err := edit(f, past); err != nil {
			return err
		}
		after = *f
		return nil
	})
	if err != nil {
		return err
	}
	if before.Revision != after.Revision {
		c.remember(&before)
	}
	if !sameServing(&before, &after) {
		c.spawn(func() { c.retire(name, servingOf(&after)...) })
	}
	return nil
}

// divide changes f as setTraffic says.
func divide(f *store.Function, past []*store.Function, percent map[string]int) error {
	switch {
	case f.Plain == nil:
		e := api.Errorf(api.CodeConflict, "%s is a sealed function: callers and key brokers go by its owner's signed statement", f.Name.Short())
		e.Field, e.Remedy = "statement", "divide its calls with faasd-sec traffic, which signs one"
		return e
	case f.Next != nil:
		return api.Errorf(api.CodeConflict, "a revision of %s is on its way; try again when it serves", f.Name.Short())
	}
	known := knownOf(f, past)
	shares, sum := map[*store.Function]int{}, 0
	for _, prefix := range slices.Sorted(maps.Keys(percent)) {
		field, n := "percent."+prefix, percent[prefix]
		var found []*store.Function
		for _, k := range known {
			if strings.HasPrefix(k.Revision, prefix) {
				found = append(found, k)
			}
		}
		switch {
		case n < 0 || n > 100:
			return api.Invalid(field, "use 0 to 100", fmt.Sprint(n))
		case prefix == "" || len(found) == 0:
			return api.Invalid(field, "faasd-sec rollback NAME --list shows the revisions", "there is no such revision")
		case len(found) > 1 || shares[found[0]] > 0:
			return api.Invalid(field, "write more of its digits, and each revision once", "it is not clear which is meant")
		}
		if n > 0 {
			shares[found[0]] = n
			sum += n
		}
	}
	if sum != 100 {
		return api.Invalid("percent", "make them 100 in all", fmt.Sprintf("they are %d", sum))
	}
	first := known[0]
	if shares[first] == 0 {
		for _, k := range known { // in order: two that are equal are decided alike
			if shares[k] > shares[first] {
				first = k
			}
		}
	}
	*f = dividedAs(f, first, known, shares)
	return nil
}

// knownOf are the revisions of f that serve, the current one first, and those that
// did.
func knownOf(f *store.Function, past []*store.Function) []*store.Function {
	known := f.Serving()
	for _, p := range past {
		if !serves(f, p.Revision) {
			known = append(known, p)
		}
	}
	return known
}

// dividedAs is f with first as its current revision and others of the known beside it,
// by their shares. Those that served and have none drain.
func dividedAs(f, first *store.Function, known []*store.Function, shares map[*store.Function]int) store.Function {
	until := time.Now().Add(drainFor).UnixMilli()
	g := *first.Alone()
	g.Replicas, g.ReplicasAt, g.Highest, g.Rollout = f.Replicas, f.ReplicasAt, f.Newest(), f.Rollout
	for _, k := range known {
		percent, has := shares[k]
		switch {
		case k == first:
		case has:
			g.Beside = append(g.Beside, store.Beside{Function: k.Alone(), Percent: percent})
		case serves(f, k.Revision):
			g.Beside = append(g.Beside, store.Beside{Function: k.Alone(), Until: until})
		}
	}
	return g
}
