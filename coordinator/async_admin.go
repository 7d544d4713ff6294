package coordinator

import (
	"context"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	defaultCalls = 100  // in one list
	maxCalls     = 1000 // at most
)

// serveCalls serves what is below /v1/async. out is nil for nothing to tell.
func (c *Coordinator) serveCalls(ctx *fasthttp.RequestCtx, rest string) (out any, err error) {
	if c.async == nil {
		return nil, noAsync()
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	dead, isDead := strings.CutPrefix("/"+rest, "/dead")
	switch {
	case isDead && (dead == "" || dead[0] == '/'):
		return c.serveDead(sctx, ctx, strings.TrimPrefix(dead, "/"))
	case rest == "" && ctx.IsGet():
		f, err := c.filterOf(ctx)
		if err != nil {
			return nil, err
		}
		list := []api.AsyncCall{}
		for _, call := range c.async.Queue.Waiting(f) {
			list = append(list, describeCall(&call))
		}
		return list, nil
	case ctx.IsGet():
		s, err := c.async.Queue.State(sctx, rest)
		if err != nil {
			return nil, err
		}
		a := describe(&s)
		return a, c.mayManage(ctx, stateOwner(&s), a.Sender)
	}
	return nil, api.Errorf(api.CodeMethod, "calls are listed and looked up here; DELETE %sCALL-ID cancels one", api.GatewayPathAsync)
}

// serveDead serves /v1/async/dead, /ID and /ID/replay.
func (c *Coordinator) serveDead(sctx context.Context, ctx *fasthttp.RequestCtx, rest string) (any, error) {
	if rest == "" {
		if !ctx.IsGet() {
			return nil, api.Errorf(api.CodeMethod, "dead letters are listed here")
		}
		f, err := c.filterOf(ctx)
		if err != nil {
			return nil, err
		}
		dead, err := c.async.Queue.DeadLetters(sctx, f)
		if err != nil {
			return nil, err
		}
		list := make([]api.AsyncCall, len(dead))
		for i := range dead {
			list[i] = describeDead(&dead[i])
		}
		return list, nil
	}
	id, replay := strings.CutSuffix(rest, "/replay")
	s, err := c.async.Queue.State(sctx, id)
	if err != nil {
		return nil, err
	}
	if s.Dead == nil {
		return nil, api.Errorf(api.CodeConflict, "call %q is no dead letter", id)
	}
	if err := c.mayManage(ctx, s.Dead.Owner, s.Dead.Sender); err != nil {
		return nil, err
	}
	switch {
	case replay && ctx.IsPost():
		return nil, c.async.Queue.Replay(sctx, id)
	case !replay && ctx.IsGet():
		return describeDead(s.Dead), nil
	case !replay && ctx.IsDelete():
		return nil, c.async.Queue.Purge(sctx, id)
	}
	return nil, api.Errorf(api.CodeMethod, "a dead letter is got or deleted, and replayed by POST of its /replay")
}

// filterOf reads which calls are asked for: those whose sender, or whose
// function's owner, signed the request, and those of plain functions, which
// whoever may deploy may see.
func (c *Coordinator) filterOf(ctx *fasthttp.RequestCtx) (queue.Filter, error) {
	var f queue.Filter
	plain := false
	who, err := c.concerned(ctx, func(who sealed.Fingerprint) error { plain = c.mayDeploy(who) == nil; return nil })
	if err != nil {
		return f, err
	}
	f.Owner, f.Plain, f.Limit = who.String(), plain, defaultCalls
	args := ctx.QueryArgs()
	if name := args.Peek(api.QueryFunction); len(name) > 0 {
		if f.Function, err = api.ParseFunctionName(string(name)); err != nil {
			return f, err
		}
	}
	f.After = string(args.Peek("after"))
	if args.Has("limit") {
		if f.Limit, err = args.GetUint("limit"); err != nil || f.Limit < 1 || f.Limit > maxCalls {
			return f, api.Invalid("limit", "use 1 to 1000", "it is not such a number")
		}
	}
	return f, nil
}

// mayManage verifies who signed: a sealed call's sender or its function's owner;
// for a plain function's whoever may deploy.
func (c *Coordinator) mayManage(ctx *fasthttp.RequestCtx, owner, sender string) error {
	if sender != "" {
		return c.concernedBy(ctx, owner, sender)
	}
	_, err := c.authorise(ctx, reqauth.Body{})
	return err
}

func stateOwner(s *queue.State) string {
	switch {
	case s.Waiting != nil:
		return s.Waiting.Owner
	case s.Result != nil:
		return s.Result.Owner
	}
	return s.Dead.Owner
}

func describe(s *queue.State) api.AsyncCall {
	switch {
	case s.Waiting != nil:
		return describeCall(s.Waiting)
	case s.Dead != nil:
		return describeDead(s.Dead)
	}
	r := s.Result
	a := api.AsyncCall{ID: r.ID, Function: r.Function, State: api.AsyncDone, Sender: r.Sender, Arrived: r.Arrived, Attempts: r.Attempts,
		Ended: r.Ended, Until: r.Until, Status: r.Status}
	if r.Failed != nil {
		a.State, a.Code, a.Message = api.AsyncCancelled, r.Failed.Code, r.Failed.Message
	}
	return a
}

func describeCall(call *queue.Call) api.AsyncCall {
	a := api.AsyncCall{ID: call.ID, Function: call.Function, State: api.AsyncWaiting, Sender: call.Sender, Arrived: call.Arrived, Expires: call.Expires,
		Priority: call.Priority, Size: call.Body.Size, Attempts: call.Attempts, Next: call.NotUntil}
	if call.Running() {
		a.State, a.Next = api.AsyncRunning, 0
	}
	if call.Last != nil {
		a.Code, a.Message = call.Last.Code, call.Last.Message
	}
	return a
}

func describeDead(d *queue.Dead) api.AsyncCall {
	a := describeCall(&d.Call)
	a.State, a.Next, a.Ended, a.Until = api.AsyncDead, 0, d.Failure.At, d.Until
	a.Code, a.Message = d.Failure.Code, d.Failure.Message
	return a
}

// waitingCalls are the asynchronous calls of sealed functions that wait, for the
// list of what waits; not of plain ones, whose ids are their callers' secrets.
func (c *Coordinator) waitingCalls(list []api.WaitingTask) []api.WaitingTask {
	if c.async == nil {
		return list
	}
	seen := make(map[string]bool, len(list))
	for i := range list {
		seen[list[i].ID] = true
	}
	for _, call := range c.async.Queue.Waiting(queue.Filter{Limit: maxCalls}) {
		if call.Sender != "" && !call.Running() && !seen[call.ID] {
			list = append(list, api.WaitingTask{ID: call.ID, Function: call.Function, Priority: call.Priority, Since: call.Arrived, Deadline: call.Expires})
		}
	}
	return list
}

// cancelWaitingCall is cancelWaiting for an asynchronous call; known is false
// where there is none of that id.
func (c *Coordinator) cancelWaitingCall(ctx *fasthttp.RequestCtx, id string) (known bool, err error) {
	if c.async == nil {
		return false, nil
	}
	err = c.cancelAsync(ctx, id)
	return api.CodeOf(err) != api.CodeNotFound, err
}
