package coordinator

import (
	"context"
	"errors"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/placement"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// serveInvoke takes one sealed invocation.
func (c *Coordinator) serveInvoke(ctx *fasthttp.RequestCtx, name string) {
	if c.serveUnsealed(ctx, name) {
		return
	}
	if len(ctx.Request.Header.Peek(api.HeaderManifest)) > 0 {
		deep(func() { c.serve(ctx, name) })
		return
	}
	c.serve(ctx, name)
}

func (c *Coordinator) serve(ctx *fasthttp.RequestCtx, name string) {
	began := time.Now()
	id := gate.CallID(ctx)
	r, body, peeked, err := c.accept(ctx, name, began)
	var t task
	if err == nil {
		if t, err = c.prepare(ctx, r, body, &peeked, id); err != nil {
			body.Release()
		}
	}
	if err != nil {
		c.met.Refused(api.CodeOf(err))
		c.problem(ctx, err)
		return
	}
	t.trace = c.traceHeader(ctx)
	reply, p, err := c.place(&t, body, id, time.UnixMilli(int64(min(peeked.Message.Expires, 1<<62))))
	if t.held != nil {
		wipeStack() // what the calls that placed it have left
	}
	if err != nil {
		body.Release()
		c.met.Done(began, api.CodeOf(err))
		c.problem(ctx, err)
		return
	}
	gate.SetDuration(ctx, began)
	if r.offered != "" && began.Before(r.offers) { // who holds another one asks for it
		ctx.Response.Header.Set(api.HeaderStated, r.offered)
	}
	status, manifested := reply.Status, t.held != nil
	if manifested && reply.Header(api.HeaderUnopened) != "" {
		c.unfence(&t) // before the caller can know, and send it again
	}
	err = reply.SendTo(ctx, func(err error) {
		p.inFlight.Add(-1)
		if manifested {
			r.hosting.end(p.id)
		}
		if err == nil && !manifested {
			r.freed.put(p, time.Now())
		}
		c.queue.ended(r.name)
		c.queue.signal()
		c.met.Done(began, gate.Outcome(status, err, api.CodeNodeLost))
	}, api.HeaderServedBy, api.HeaderStart)
	switch {
	case err != nil:
		c.problem(ctx, api.Wrap(api.CodeNodeLost, err, "the connection to node "+p.id+" broke within its reply"))
	case ctx.Response.IsBodyStream():
		c.readNews() // it may flow for long
	}
}

// prepare opens the invocation's manifest, if it has one, and accepts its task.
func (c *Coordinator) prepare(ctx *fasthttp.RequestCtx, r *route, body *relay.Body, p *sealed.Peeked, id string) (task, error) {
	if err := c.provenIfCold(r, body.Head); err != nil {
		return task{}, err
	}
	t, err := c.taskOf(ctx, r, p, id)
	if err != nil || t.held == nil {
		return t, err
	}
	if err := c.fence(&t, r.rec.Owner, time.Now()); err != nil {
		t.forget()
		return t, err
	}
	t.why = c.explanations.begin(&t)
	return t, nil
}

// accept checks what can be checked without opening anything, so that a bad
// request costs no node anything, and gives the clear part of the message.
func (c *Coordinator) accept(ctx *fasthttp.RequestCtx, name string, now time.Time) (*route, *relay.Body, sealed.Peeked, error) {
	var none sealed.Peeked
	fn, err := gate.Name(ctx, name)
	if err != nil {
		return nil, nil, none, err
	}
	r, err := c.routeOf(fn)
	if err != nil {
		return nil, nil, none, gate.Unread(ctx, err)
	}
	r.calls.Add(1)
	if r.plain != nil {
		return nil, nil, none, gate.Unread(ctx, plainFunction(fn))
	}
	body, p, err := gate.Take(ctx, fn, max(c.cfg.MaxBody, 0))
	if err != nil {
		return nil, nil, none, err
	}
	body.Watch(ctx, &c.callers)
	r = r.sealedFor(p.Grant.Context)
	if err := gate.Check(&p, &r.gate, now); err != nil {
		body.Release()
		return nil, nil, none, err
	}
	return r, body, p, nil
}

// place finds a node for the invocation and sends it there. It returns with
// the reply's header, the body still flowing, and the node's in-flight count
// raised by one. Where the task's policy says so, what failed is placed again.
func (c *Coordinator) place(t *task, body *relay.Body, id string, expires time.Time) (*relay.Reply, *peer, error) {
	defer t.forget()
	for attempts := 1; ; attempts++ {
		reply, p, err := c.placeOnce(t, body, id, expires)
		if err == nil {
			return reply, p, nil
		}
		t.why.failed(err)
		code := api.CodeOf(err)
		// All other errors come before an agent had a byte: see send.
		unreached := code != api.CodeNodeLost && code != api.CodeDeadline && code != api.CodeCallerGone
		if !body.Small || !t.retry.again(attempts, code, unreached) || !c.pause(t, attempts, expires) {
			if unreached && t.held != nil && t.attempt == nil { // a call that was accepted for later is attempted again
				c.unfence(t)
			}
			return nil, nil, err
		}
		c.met.retried.Inc()
	}
}

// pause waits before another attempt, and reports whether there is time for one.
func (c *Coordinator) pause(t *task, attempts int, expires time.Time) bool {
	d := retryPause * time.Duration(attempts)
	if !time.Now().Add(d).Before(t.until(expires)) {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.life.Done():
		return false
	}
}

// retryPause is before the second attempt of a task, and grows with each more.
const retryPause = 50 * time.Millisecond

func (c *Coordinator) placeOnce(t *task, body *relay.Body, id string, expires time.Time) (*relay.Reply, *peer, error) {
	now := time.Now()
	deadline := now.Add(c.cfg.QueueTimeout)
	if expires.Before(deadline) {
		deadline = expires
	}
	deadline = t.until(deadline)
	queued, owner := false, t.r.rec.Owner
	var turn *turn // its place among those that wait, once it has to
	life := c.life
	if t.attempt != nil {
		life = t.attempt
	}
	for {
		if t.cancelled() {
			if queued {
				c.queue.leave(owner)
			}
			return nil, nil, errCancelled
		}
		freed := c.queue.next() // taken before the attempt: what ends during it counts
		freed.turn = turn
		view := c.dep.Mesh.Snapshot()
		reply, peer, last, err := c.tryAll(view, t, body, id)
		if err == nil && reply == nil && !queued {
			err = c.fits(view, t)
		}
		t.forget()
		if err != nil || reply != nil {
			if queued {
				c.queue.leave(owner)
			}
			return reply, peer, err
		}
		if !queued {
			x := waiter{id: t.name, name: t.r.name, owner: owner, sender: t.sender(), priority: t.priority, since: now, deadline: deadline}
			if !t.ownKind {
				x.revision = t.r.hex
			}
			c.queue.makeRoom(x.key(), owner)
			if err := c.queue.enter(owner); err != nil {
				return nil, nil, err
			}
			queued = true
			if t.why == nil {
				t.why = c.explanations.begin(t)
			}
			turn = c.queue.turn(x)
			defer turn.end()
			c.met.queued.Inc()
			continue // from now on what ends is signalled; before it was not
		}
		if err := c.renew(t); err != nil {
			c.queue.leave(owner)
			return nil, nil, err
		}
		wctx, cancel := context.WithDeadline(life, deadline)
		body.WhenGone(cancel)
		err = c.queue.wait(wctx, freed, c.dep.Mesh.Changed(view.Version))
		cancel()
		if err != nil {
			c.queue.leave(owner)
			if body.Gone() {
				return nil, nil, body.Because(err)
			}
			if errors.Is(err, errCancelled) || t.cancelled() {
				return nil, nil, errCancelled
			}
			if last == nil {
				last = api.Errorf(api.CodeNoRoom, "no node had room in time")
			}
			return nil, nil, last
		}
	}
}

// tryAll offers the invocation to one candidate after the other. All results
// nil but last means that none took it and patience may help.
func (c *Coordinator) tryAll(view *api.ClusterView, t *task, body *relay.Body, id string) (*relay.Reply, *peer, error, error) {
	r := t.r
	idx := c.indexOf(view)
	var last error
	failures, patience := 0, false
	look := look{seed: c.seed.Add(1), pending: func(i int) int {
		n := view.Nodes[i]
		return max(0, c.peers.inFlight(n.Meta.ID)-n.Load.InFlight)
	}, hosting: func(i int) bool { return r.hosting.there(view.Nodes[i].Meta.ID) }}
	t.why.round()
	for {
		d, err := t.pick(idx, c.cfg.Weights, &look)
		if err != nil {
			return nil, nil, nil, err
		}
		offers := make([]*peer, 0, len(d.Candidates)+1)
		for _, cand := range d.Candidates {
			offers = append(offers, c.peers.get(view.Nodes[cand.Index]))
		}
		if len(offers) == 0 && t.held == nil { // a slot of one kind serves no task of another
			if p := r.freed.take(look.exclude, time.Now()); p != nil {
				offers = append(offers, p)
			}
		}
		if len(offers) == 0 {
			if failures > 0 && !patience {
				return nil, nil, nil, last // every node that could, tried: waiting changes nothing
			}
			if last == nil {
				last = api.Errorf(api.CodeNoRoom, "no node can take it: %s", d.Summary())
			}
			return nil, nil, last, nil
		}
		for i, p := range offers {
			warm := i >= len(d.Candidates) || d.Candidates[i].Warm
			look.exclude = append(look.exclude, p.id)
			if err := t.open(); err != nil { // again, where the last node was told
				return nil, nil, nil, err
			}
			p.inFlight.Add(1)
			if t.held != nil {
				r.hosting.begin(p.id)
			}
			reply, refusal, err := c.send(p, t, body, id, warm)
			t.why.offered(p.id, errors.Join(refusal, err))
			if reply != nil {
				return reply, p, nil, nil
			}
			p.inFlight.Add(-1)
			if t.held != nil {
				r.hosting.end(p.id)
			}
			if err != nil {
				return nil, nil, nil, err
			}
			if last == nil || !patience {
				last = refusal
			}
			c.met.refusals.WithLabelValues(api.CodeOf(refusal).Label()).Inc()
			if patient(api.CodeOf(refusal)) {
				patience = true
			} else {
				// The next node may do better, but not for ever.
				if failures++; failures >= 3 {
					return nil, nil, nil, refusal
				}
			}
		}
	}
}

// patient reports whether a refusal may end by waiting.
func patient(code api.Code) bool {
	return code == api.CodeNoRoom || code == api.CodeBusy || code == api.CodeDraining || code == api.CodeUnavailable
}

// final reports whether a refusal would be the same on every node.
func final(code api.Code) bool {
	return code == api.CodeKeyRefused || code == api.CodeForbidden || code == api.CodeStaleRevision ||
		code == api.CodeInvalid || code == api.CodeFunctionCrashed || code == api.CodeFunctionNotReady
}

// indexOf keeps one index per view.
func (c *Coordinator) indexOf(view *api.ClusterView) *placement.Index {
	idx := c.index.Load()
	switch {
	case idx == nil:
		idx = placement.NewIndex(view, 0)
	case idx.View() == view:
		return idx
	default:
		idx = idx.Next(view)
	}
	c.index.Store(idx)
	return idx
}

// fits refuses at once what no member could ever take.
//
//go:noinline
func (c *Coordinator) fits(view *api.ClusterView, t *task) error {
	if err := t.open(); err != nil {
		return err
	}
	nodes, lacking := 0, ""
	for _, n := range view.Nodes {
		if n.Meta.Capacity == (api.Resources{}) {
			continue
		}
		nodes++
		if lacking = t.needs().request.Resources.Lacks(n.Meta.Capacity); lacking == "" {
			return nil
		}
	}
	if nodes == 0 {
		return nil // none has joined: one may
	}
	e := api.Errorf(api.CodeNoRoom, "no node of the cluster is large enough: %s", lacking)
	e.Field, e.Remedy = "limits."+lacking, "ask for less, or add a larger node"
	return e
}
