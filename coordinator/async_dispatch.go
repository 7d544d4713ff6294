package coordinator

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// dispatch attempts what waits, until the coordinator ends.
func (c *Coordinator) dispatch() {
	places := make(chan struct{}, c.async.Workers)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for c.life.Err() == nil {
		timer.Reset(c.begin(places))
		select {
		case <-c.async.Queue.Woken():
		case <-timer.C:
		case <-c.life.Done():
		}
	}
	for range cap(places) { // those under way end with life
		places <- struct{}{}
	}
}

// buryExpired ends what expired while it waited, until the coordinator ends. There may
// be many at once, each with a write, and others are attempted meanwhile.
func (c *Coordinator) buryExpired() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.life.Done():
			return
		}
		n, err := c.async.Queue.BuryExpired(c.life)
		c.met.async.dead.Add(float64(n))
		if err != nil && c.life.Err() == nil {
			c.log.Warn("expired asynchronous calls stay for now", "err", err)
		}
	}
}

// begin starts as many attempts as there are calls and places, and returns when
// to look again at the latest.
func (c *Coordinator) begin(places chan struct{}) time.Duration {
	for {
		select {
		case places <- struct{}{}:
		default:
			return idleLook // each that ends wakes dispatch
		}
		turn, again := c.async.Queue.Next()
		if turn == nil {
			<-places
			if again.IsZero() {
				return idleLook
			}
			return min(max(time.Until(again), time.Millisecond), idleLook)
		}
		go func() {
			defer func() { <-places; c.async.Queue.Wake() }()
			lease, err := turn.Claim(c.life)
			if err == nil {
				c.attempt(lease)
			} else if !errors.Is(err, queue.ErrFenced) && c.life.Err() == nil {
				c.log.Warn("asynchronous call not claimed; tried again", "err", err)
			}
		}()
	}
}

// idleLook is how long a coordinator relies on being told of what there is to do.
const idleLook = 5 * time.Second

// attempt runs one call under its lease and writes what came of it.
func (c *Coordinator) attempt(l *queue.Lease) {
	ctx, cancel := l.Context(c.life)
	defer cancel()
	call := &l.Call
	began := time.Now()
	if call.Attempts == 1 {
		c.met.async.latency.Observe(began.Sub(time.UnixMilli(call.Arrived)).Seconds())
	}
	var a attempted
	run := func() { c.run(ctx, call, &a) }
	if len(call.Manifest) > 0 {
		deep(run)
	} else {
		run()
	}
	a.lost = ctx.Err() != nil
	defer a.body.drop()
	c.met.async.attempts.WithLabelValues(outcome(a.err)).Inc()
	// What came of it is written also while the daemon stops.
	wctx, stop := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer stop()
	err := c.settle(wctx, l, &a, began)
	switch {
	case errors.Is(err, queue.ErrFenced):
		c.log.Info("asynchronous call ended elsewhere", "call", call.ID, "function", call.Function)
	case err != nil:
		c.log.Warn("outcome of an asynchronous call not stored; it is attempted again", "call", call.ID, "function", call.Function, "err", err)
	}
}

// attempted is what an attempt came to: a result, or err.
type attempted struct {
	result queue.Result
	inline []byte
	body   spill
	err    error
	begun  bool // a byte may have reached the function
	lost   bool // it was broken off: the lease may be gone, or the daemon stops
}

// settle writes an attempt's outcome.
func (c *Coordinator) settle(ctx context.Context, l *queue.Lease, a *attempted, began time.Time) error {
	call := &l.Call
	now := time.Now()
	if a.err == nil {
		a.result.DurationMs = float64(now.Sub(began).Microseconds()) / 1000
		err := l.Finish(ctx, a.result, a.inline)
		if err == nil {
			c.met.async.done.Inc()
			c.met.async.whole.Observe(now.Sub(time.UnixMilli(call.Arrived)).Seconds())
		}
		return err
	}
	why := queue.Failure{Code: api.CodeOf(a.err), Message: api.ProblemOf(a.err, "").Detail, At: now.UnixMilli()}
	next, again := c.nextAttempt(call, a, now)
	switch {
	case a.lost && !a.begun: // whoever has the lease next goes on
		return l.Unbegun(ctx, now, why)
	case again && !a.begun && patient(why.Code):
		return l.Unbegun(ctx, next, why)
	case again:
		c.met.async.retries.Inc()
		return l.Again(ctx, next, why)
	}
	err := l.Bury(ctx, why)
	if err == nil {
		c.met.async.dead.Inc()
	}
	return err
}

// nextAttempt decides whether and when a failed call is attempted again.
func (c *Coordinator) nextAttempt(call *queue.Call, a *attempted, now time.Time) (time.Time, bool) {
	code := api.CodeOf(a.err)
	if !a.begun && patient(code) { // no room: its policy is for attempts
		at := now.Add(patience/2 + rand.N(patience))
		return at, call.Expires == 0 || at.UnixMilli() < call.Expires
	}
	if call.Attempts >= call.Retry.Attempts || hopeless(code) {
		return time.Time{}, false
	}
	bound := time.Duration(call.Retry.MinWaitMs) * time.Millisecond
	most := time.Duration(call.Retry.MaxWaitMs) * time.Millisecond
	for i := 1; i < call.Attempts && bound < most; i++ {
		bound *= 2
	}
	at := now
	if bound = min(bound, most); bound > 0 {
		at = now.Add(rand.N(bound)) // full jitter
	}
	return at, call.Expires == 0 || at.UnixMilli() < call.Expires
}

// patience is about how long a call rests that found no room.
const patience = 2 * time.Second

// hopeless reports whether an error would be the same in every attempt.
func hopeless(code api.Code) bool {
	switch code {
	case api.CodeInvalid, api.CodeForbidden, api.CodeUnauthorized, api.CodeMediaType, api.CodeTooLarge, api.CodeMethod,
		api.CodeStaleRevision, api.CodeExceedsBounds, api.CodeDuplicateTask, api.CodeCancelled, api.CodeNotFound,
		api.Code(sealed.CodeFormat), api.Code(sealed.CodeUnknownKey), api.Code(sealed.CodeWrongFunction),
		api.Code(sealed.CodeWindow), api.Code(sealed.CodeSignature), api.Code(sealed.CodeSender),
		api.Code(sealed.CodeCommitment), api.Code(sealed.CodeRecord), api.Code(sealed.CodeTruncated):
		return true
	}
	return false
}

// run places a call and takes its result.
func (c *Coordinator) run(ctx context.Context, call *queue.Call, a *attempted) {
	a.body.blobs = c.async.Blobs
	body, err := c.openBody(ctx, call)
	if err != nil {
		a.err = err
		return
	}
	taken := false
	defer func() {
		if !taken {
			body.Release()
		}
	}()
	r, t, err := c.ready(call, body)
	if err != nil {
		a.err = err
		return
	}
	t.attempt = ctx
	stop := context.AfterFunc(ctx, func() { c.queue.abandon(call.ID) })
	reply, peer, err := c.place(&t, body, call.ID, time.UnixMilli(call.Expires))
	stop()
	if err != nil {
		code := api.CodeOf(err)
		a.err, a.begun = err, code == api.CodeNodeLost || code == api.CodeDeadline
		return
	}
	if r.plain != nil {
		taken = true
		c.takePlain(a, call, reply)
	} else {
		taken = reply.Status == fasthttp.StatusOK // takeReply releases it then
		c.takeReply(a, reply)
	}
	peer.inFlight.Add(-1)
	if t.held != nil {
		r.hosting.end(peer.id)
	} else if a.err == nil {
		r.freed.put(peer, time.Now())
	}
	c.queue.ended(r.name)
	c.queue.signal()
}

// ready checks a call as if it had just come, and makes its task.
func (c *Coordinator) ready(call *queue.Call, body *relay.Body) (*route, task, error) {
	now := time.Now()
	if call.Expires != 0 && now.UnixMilli() >= call.Expires {
		return nil, task{}, api.Errorf(api.Code(sealed.CodeWindow), "it expired while it waited")
	}
	r, err := c.routeOf(call.Function)
	if err != nil {
		return nil, task{}, err
	}
	if r.plain != nil {
		if call.Sender != "" {
			return nil, task{}, plainFunction(r.name)
		}
		r = r.share(call.ID)
		return r, c.plainTask(r, call), nil
	}
	p, err := sealed.Peek(body.Head)
	if err == nil {
		r = r.sealedFor(p.Grant.Context)
		err = gate.Check(&p, &r.gate, now)
	}
	if err != nil {
		return nil, task{}, gate.Coded(err)
	}
	t, err := c.taskWith(call.Manifest, r, &p, call.ID)
	if err == nil && t.held != nil {
		t.why = c.explanations.begin(&t)
	}
	return r, t, err
}

// takeReply reads a node's reply: a result, or the agent's refusal.
func (c *Coordinator) takeReply(a *attempted, reply *relay.Reply) {
	a.begun = reply.Header(api.HeaderUnopened) == ""
	if reply.Status != fasthttp.StatusOK {
		a.err = problemOf(reply) // ends the reply, but not its request's body
		return
	}
	a.result = queue.Result{Status: reply.Status, Node: reply.Header(api.HeaderServedBy), Start: reply.Header(api.HeaderStart)}
	typ := reply.Header(fasthttp.HeaderContentType)
	_, err := reply.SaveTo(&a.body)
	a.result.Body, a.inline, err = a.body.end(err)
	a.result.Body.Type = typ
	if err != nil {
		a.err = a.body.why(err)
	}
}
