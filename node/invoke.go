package node

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// serveInvoke passes one sealed invocation to a sandbox. Every refusal before
// the agent's socket carries HeaderRefused, so that the coordinator may try
// another node; nothing after it does.
func (n *Node) serveInvoke(ctx *fasthttp.RequestCtx, name string) {
	n.met.inFlight.Inc()
	// The body comes first, so that a refusal leaves the connection usable.
	body, err := relay.ReadBody(ctx, n.cfg.MaxBody)
	if err != nil {
		n.met.done(api.CodeOf(err))
		n.problem(ctx, err)
		return
	}
	body.WatchOurs(ctx, &n.callers)
	rev, err := n.lookup(ctx, name)
	if err != nil {
		body.Release()
		n.met.done(api.CodeOf(err))
		n.refuse(ctx, err)
		return
	}
	t, err := n.taskFor(ctx, rev)
	if err == nil && rev.plain != nil {
		err = errPlain(rev)
	}
	if err != nil {
		n.waive(ctx, rev)
		body.Release()
		n.met.done(api.CodeOf(err))
		n.refuse(ctx, err)
		return
	}
	if t != nil {
		rev = t.rev
	}
	// Before anything is started for it.
	peek, err := peekRequest(body.Head, rev)
	if err != nil {
		n.waive(ctx, rev)
		body.Release()
		n.met.done(api.CodeOf(err))
		n.problem(ctx, err)
		return
	}
	if err := n.beginTask(t, peek.Message.Expires); err != nil {
		n.waive(ctx, rev)
		body.Release()
		n.met.done(api.CodeOf(err))
		if api.CodeOf(err) == api.CodeReplay {
			n.problem(ctx, err) // not as refused: it would run on another node
		} else {
			n.refuse(ctx, err)
		}
		return
	}
	sl, err := n.slotFor(ctx, rev, t, body.Head[:peek.GrantLen()])
	if err != nil {
		n.forgetTask(t)
		body.Release()
		n.met.done(api.CodeOf(err))
		n.refuse(ctx, err)
		return
	}
	if err := n.keepTask(t); err != nil {
		n.forgetTask(t)
		sl.release()
		body.Release()
		n.met.done(api.CodeOf(err))
		n.refuse(ctx, err)
		return
	}
	reply, err := n.deliver(sl, peek, body, string(ctx.Request.Header.Peek(api.HeaderCallID)))
	if err != nil {
		sl.release()
		body.Release()
		n.met.done(api.CodeOf(err))
		n.problem(ctx, err)
		return
	}
	if reply.Header(api.HeaderUnopened) != "" {
		n.forgetTask(t)
	}
	ctx.Response.Header.Set(api.HeaderServedBy, n.cfg.ID)
	ctx.Response.Header.Set(api.HeaderStart, sl.how())
	if sl.cold {
		ctx.SetUserValue(startedFor{}, sl.s)
		<-sl.s.told
	}
	if l := n.load.Load(); l != nil && time.Since(l.at) < loadFresh {
		carry(ctx, l)
	}
	status := reply.Status
	err = reply.SendTo(ctx, func(err error) {
		sl.release()
		switch {
		case err != nil:
			n.met.done(gate.Broke(err, api.CodeFunctionIO))
		case status == fasthttp.StatusOK:
			n.met.done("ok")
		default:
			n.met.done(api.CodeAgentRefused)
		}
	}, api.HeaderUnopened)
	if err != nil {
		n.problem(ctx, api.Wrap(api.CodeFunctionCrashed, err, "the sandbox ended within its reply: "+n.lastWords(sl.s)))
	}
}

// waive gives back the slot of the ticket that came with a request, if one did.
func (n *Node) waive(ctx *fasthttp.RequestCtx, rev *revision) {
	if t := ctx.Request.Header.Peek(api.HeaderTicket); len(t) > 0 {
		if sl, err := n.claim(string(t), rev); err == nil {
			sl.release()
		}
	}
}

// taskFor finds what an invocation needs: it says so itself, or did when it asked
// for the ticket that it brings.
func (n *Node) taskFor(ctx *fasthttp.RequestCtx, rev *revision) (*task, error) {
	needs, ticket := ctx.Request.Header.Peek(api.HeaderNeeds), ctx.Request.Header.Peek(api.HeaderTicket)
	if len(needs) == 0 && len(ticket) > 0 {
		return n.ticketTask(string(ticket), rev, time.Now())
	}
	return n.taskOf(needs, rev, time.Now())
}

// slotFor claims the ticket that came with the request, or acquires a slot for
// an invocation under grant.
func (n *Node) slotFor(ctx *fasthttp.RequestCtx, rev *revision, t *task, grant []byte) (sl slot, err error) {
	if ticket := ctx.Request.Header.Peek(api.HeaderTicket); len(ticket) > 0 {
		sl, err = n.claim(string(ticket), rev)
	} else {
		sl, err = n.slot(rev, t, askerOf(ctx, grant))
	}
	if err == nil && t != nil {
		sl.until = t.until
	}
	return sl, err
}

// askerOf is who sent a request. What it refers to is the request's.
func askerOf(ctx *fasthttp.RequestCtx, grant []byte) asker {
	return asker{grant: grant, clock: ctx.Request.Header.Peek(api.HeaderTime), at: ctx.Time(), existing: len(ctx.Request.Header.Peek(api.HeaderExisting)) > 0}
}

// slot acquires a slot within what a cold start may take, for a task with needs
// if t is one.
func (n *Node) slot(rev *revision, t *task, by asker) (slot, error) {
	// The common case needs no timer.
	n.mu.Lock()
	s := n.pick(rev)
	if s != nil && s.state == ready && !n.draining && !rev.full.Load() {
		first := n.enter(s)
		n.mu.Unlock()
		return slot{s: s, n: n, first: first}, nil
	}
	n.mu.Unlock()
	c, cancel := t.within(n.life, rev.start)
	defer cancel()
	return n.acquire(c, rev, by)
}

// peekRequest reads a request's clear part and refuses what no agent would take
// by its times alone. Without that, messages that claim to expire in a thousand
// years would fill the replay set for good, and it takes no key to make one.
func peekRequest(head []byte, rev *revision) (sealed.Peeked, error) {
	peek, err := sealed.Peek(head)
	switch {
	case err != nil:
	case peek.Grant.Role != sealed.RoleRequest: // others may have no times to check
		err = &sealed.Error{Code: sealed.CodeFormat, Detail: "the envelope is not a request"}
	default:
		return peek, checkTimes(&peek, rev)
	}
	return peek, api.Wrap(api.Code(sealed.CodeOf(err)), err, err.Error())
}

// checkTimes refuses a message whose times no agent would take.
func checkTimes(peek *sealed.Peeked, rev *revision) error {
	err := sealed.CheckWindow(&peek.Grant, &peek.Message, api.Milliseconds(rev.desc.MaxQueuedMS, 0), rev.seen.Now())
	if err != nil {
		return api.Wrap(api.Code(sealed.CodeOf(err)), err, err.Error())
	}
	return nil
}

// deliver checks that the message was not delivered by this node before, in
// whatever sandbox, and sends it to the agent.
func (n *Node) deliver(sl slot, peek sealed.Peeked, body *relay.Body, callID string) (*relay.Reply, error) {
	rev := sl.s.rev
	if err := rev.seen.Add(peek.Message.Grant, peek.Message.ID, peek.Message.Expires); err != nil {
		return nil, api.Wrap(api.Code(sealed.CodeOf(err)), err, err.Error())
	}
	var sent func()
	if sl.first {
		sent = n.touch // wakes another goroutine, and perhaps a thread for it: not before the agent
	}
	until := time.Now().Add(rev.bound)
	if !sl.until.IsZero() && sl.until.Before(until) {
		until = sl.until
	}
	reply, err := sl.s.up.PostThen(until, api.AgentPathInvoke, body, sent,
		relay.Header{Name: fasthttp.HeaderContentType, Value: api.ContentTypeSealed},
		relay.Header{Name: api.HeaderCallID, Value: callID})
	if err != nil {
		return nil, n.brokeOff(sl, err)
	}
	if reply.Header(api.HeaderUnopened) != "" {
		rev.seen.Remove(peek.Message.Grant, peek.Message.ID, peek.Message.Expires)
	}
	return reply, nil
}

// brokeOff explains an exchange with an agent that did not come to a reply: unless
// its caller left or its time was over, the sandbox ended under it since the last check.
func (n *Node) brokeOff(sl slot, err error) error {
	if api.CodeOf(err) == api.CodeCallerGone {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Wrap(api.CodeDeadline, err, "the function did not answer in time")
	}
	why := n.lastWords(sl.s)
	code := api.CodeFunctionCrashed
	if strings.HasPrefix(why, string(api.CodeOOMKilled)) {
		code = api.CodeOOMKilled
	}
	return api.Wrap(code, err, "the sandbox ended while it served this invocation: "+why)
}

// lastWords says why a sandbox ended, waiting a moment for the reason to come in.
func (n *Node) lastWords(s *sandbox) string {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	for {
		n.mu.Lock()
		why, wait := s.lastErr, n.changed
		n.mu.Unlock()
		if why != "" {
			return why
		}
		select {
		case <-wait:
		case <-s.gone:
		case <-t.C:
			return "the reason is not known"
		}
	}
}

// readAll reads a request's whole body, streamed or not, at most limit bytes.
func readAll(ctx *fasthttp.RequestCtx, limit int64) ([]byte, error) {
	stream := ctx.RequestBodyStream()
	if stream == nil {
		return ctx.PostBody(), nil
	}
	b, err := io.ReadAll(io.LimitReader(stream, limit+1))
	if err != nil {
		ctx.SetConnectionClose()
		return nil, api.Wrap(api.CodeInvalid, err, "the body ended early or came too slowly")
	}
	if int64(len(b)) > limit {
		ctx.SetConnectionClose()
		return nil, api.Errorf(api.CodeTooLarge, "the body is over %d bytes", limit)
	}
	return b, nil
}
