package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/store"
)

// maxSet bounds what can be set by hand.
const maxSet = 10000

// policyOf is what a function's replicas are counted by; false where nodes go by
// invocations alone. A number that was set by hand on a function without a policy
// is one: so many, whatever comes.
func policyOf(rec *store.Function) (api.Scale, bool) {
	switch {
	case rec.Scale != nil:
		p := *rec.Scale
		if rec.Replicas != nil && *rec.Replicas == 0 {
			p.Zero = true // somebody said so; the next call has replicas made
		}
		return p, true
	case rec.Replicas != nil && *rec.Replicas > 0:
		return api.Pinned(*rec.Replicas), true
	}
	return api.Scale{}, false
}

// desired is how many replicas of a function there are to be, as far as this
// coordinator knows: what was decided here, or set by hand and not yet acted on;
// else what there is, within the policy.
func (s *scaler) desired(rec *store.Function, have int) int {
	p, managed := policyOf(rec)
	if !managed {
		return have
	}
	if v, ok := s.wanted.Load(rec.Name); ok && v.(decided).setAt == rec.ReplicasAt {
		return v.(decided).want
	}
	if rec.Replicas != nil && time.Since(time.UnixMilli(rec.ReplicasAt)) < setFresh {
		have = *rec.Replicas
	}
	if p.Zero && have == 0 {
		return 0
	}
	return min(max(have, p.Min), p.Max)
}

// setReplicas sets a function's number of replicas by hand. Where it has a policy
// this holds until the load asks for another number: for more at once, for fewer
// after the policy's window. Zero on a function without one leaves it on demand.
func (c *Coordinator) setReplicas(ctx context.Context, name api.FunctionName, n int) error {
	if n < 0 || n > maxSet {
		return api.Invalid("replicas", fmt.Sprintf("use 0 to %d", maxSet), fmt.Sprint(n))
	}
	return c.change(ctx, name, func(f *store.Function) error {
		f.Replicas, f.ReplicasAt = &n, max(f.ReplicasAt+1, time.Now().UnixMilli())
		return nil
	})
}

// changeTries are enough for writers that meet now and then.
const changeTries = 5

// change edits a function's record as it is now, and returns once this coordinator
// sees it.
func (c *Coordinator) change(ctx context.Context, name api.FunctionName, edit func(*store.Function) error) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for try := 1; ; try++ {
		old, err := c.dep.Store.GetFunction(ctx, name)
		if err != nil {
			return err
		}
		f := *old
		if err := edit(&f); err != nil {
			return err
		}
		version, err := c.dep.Store.PutFunction(ctx, f, old.Version)
		if api.CodeOf(err) == api.CodeConflict && try < changeTries {
			continue
		}
		if err != nil {
			return err
		}
		if err := c.dep.Cache.Wait(ctx, version); err != nil {
			return api.Wrap(api.CodeUnavailable, err, "stored, but not yet visible here")
		}
		c.scaler.wake()
		return nil
	}
}

// serveScale serves POST /v1/functions/NAME/scale, signed by the function's owner.
func (c *Coordinator) serveScale(ctx *fasthttp.RequestCtx, path string) error {
	name, err := api.ParseFunctionName(path)
	if err != nil {
		return err
	}
	var order api.SetReplicas
	if err := c.ownerSays(ctx, name, &order); err != nil {
		return err
	}
	return c.setReplicas(c.life, name, order.Replicas)
}

// ownerSays reads a request's JSON body, which the function's owner signed.
func (c *Coordinator) ownerSays(ctx *fasthttp.RequestCtx, name api.FunctionName, into any) error {
	if err := claimsIdentity(ctx); err != nil {
		return err
	}
	body, err := readBody(ctx)
	if err != nil {
		return err
	}
	caller, err := c.authorise(ctx, reqauth.Bytes(body))
	if err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	rec, err := c.dep.Store.GetFunction(sctx, name)
	if err != nil {
		return err
	}
	// A plain function has no owner: whoever may deploy may do this.
	if rec.Plain == nil && rec.Owner != caller.Fingerprint.String() {
		return api.Errorf(api.CodeForbidden, "%s belongs to another owner", name)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return api.Invalid("body", "send it as JSON", err.Error())
	}
	return nil
}
