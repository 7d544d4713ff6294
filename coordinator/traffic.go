package coordinator

import (
	"context"
	"fmt"
	"hash/fnv"
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
	at := slot100(call)
	for _, b := range r.rec.Beside {
		if at -= b.Percent; at < 0 {
			if o := r.beside(b.Function.Revision); o != nil {
				return o
			}
		}
	}
	return r
}

// slot100 spreads ids evenly over 0 to 99.
func slot100(id string) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // never fails
	x := h.Sum64()
	// FNV's last bytes do not reach its high bits: those of SplitMix64's end do.
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return int(x % 100)
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
	return c.setTraffic(c.life, name, t.Percent)
}

// setTraffic divides the calls of a plain function among revisions that serve or
// did, named by the beginnings of their digests. The current one stays that if it
// gets a share; else the one with the most is.
func (c *Coordinator) setTraffic(ctx context.Context, name api.FunctionName, percent map[string]int) error {
	past, err := c.past(ctx, name)
	if err != nil {
		return err
	}
	var before, after store.Function
	err = c.change(ctx, name, func(f *store.Function) error {
		before = *f
		if err := divide(f, past, percent); err != nil {
			return err
		}
		after = *f
		return nil
	})
	if err != nil {
		return err
	}
	c.log.Info("calls are divided", "function", name, "percent", percent)
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
		e := api.Errorf(api.CodeConflict, "%s is a sealed function: a request is sealed for one revision, and the key broker releases keys for the current one alone", f.Name.Short())
		e.Field, e.Remedy = "name", "deploy the other revision under another name, and have callers choose"
		return e
	case f.Next != nil:
		return api.Errorf(api.CodeConflict, "a revision of %s is on its way; try again when it serves", f.Name.Short())
	}
	known := f.Serving()
	for _, p := range past {
		if !serves(f, p.Revision) {
			known = append(known, p)
		}
	}
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
	now := time.Now()
	g := *first.Alone()
	g.Replicas, g.ReplicasAt, g.Highest, g.Rollout = f.Replicas, f.ReplicasAt, f.Newest(), f.Rollout
	for _, k := range known {
		switch {
		case k == first:
		case shares[k] > 0:
			g.Beside = append(g.Beside, store.Beside{Function: k.Alone(), Percent: shares[k]})
		case serves(f, k.Revision):
			g.Beside = append(g.Beside, store.Beside{Function: k.Alone(), Until: now.Add(drainFor).UnixMilli()})
		}
	}
	*f = g
	return nil
}
