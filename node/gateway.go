package node

import (
	"encoding/hex"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// gateway serves sealed invocations to callers, without a coordinator between:
// one hop fewer, for functions that this node hosts. It refuses as a coordinator
// does (package gate). Where it differs: it chooses no other node and keeps
// nobody waiting for room, and says so at once, so that the caller can ask a
// coordinator; and it goes by the revisions that coordinators told this node, so
// that it serves a revision until it is told of its successor.
type gateway struct {
	n     *Node
	met   *gate.Metrics
	limit int64
}

// Gateway serves callers. It may be asked for once, as it registers metrics.
func (n *Node) Gateway() (fasthttp.RequestHandler, func(*fasthttp.RequestCtx, error)) {
	g := &gateway{n: n, met: gate.NewMetrics(n.dep.Registerer), limit: n.cfg.MaxBody}
	if g.limit == 0 {
		g.limit = gate.DefaultMaxBody
	}
	return g.serve, gate.ErrorHandler(n.log)
}

func (g *gateway) serve(ctx *fasthttp.RequestCtx) {
	path := ctx.Path()
	if p := len(api.GatewayPathInvoke); len(path) > p && string(path[:p]) == api.GatewayPathInvoke {
		g.n.traced(ctx, string(path[p:]), g.invoke)
		return
	}
	var err error
	switch string(path) {
	case "/healthz":
	case "/readyz":
		if rerr := g.n.Ready(); rerr != nil {
			err = api.Wrap(api.CodeUnavailable, rerr, rerr.Error())
		}
	default:
		e := api.Errorf(api.CodeNotFound, "a node's gateway serves invocations alone: POST %sNAME", api.GatewayPathInvoke)
		e.Remedy = "ask the cluster's coordinator for everything else"
		err = gate.Unread(ctx, e)
	}
	if err != nil {
		gate.Problem(ctx, g.n.log, err)
		return
	}
	ctx.SetBodyString("OK\n")
}

func (g *gateway) invoke(ctx *fasthttp.RequestCtx, name string) {
	n, began := g.n, time.Now()
	id := gate.CallID(ctx)
	if len(ctx.Request.Header.Peek(api.HeaderNeeds)) > 0 {
		g.met.Refused(api.CodeForbidden)
		gate.Problem(ctx, n.log, gate.Unread(ctx, api.Errorf(api.CodeForbidden, "needs are accepted from coordinators alone")))
		return
	}
	rev, body, peek, err := g.accept(ctx, name, began)
	if err != nil {
		g.met.Refused(api.CodeOf(err))
		gate.Problem(ctx, n.log, err)
		return
	}
	n.met.inFlight.Inc()
	var reply *relay.Reply
	sl, err := n.slot(rev, nil, asker{grant: body.Head[:peek.GrantLen()], existing: rev.rec.Scale != nil})
	if err == nil {
		if reply, err = n.deliver(sl, peek, body, id); err != nil {
			sl.release()
		}
	}
	if err != nil {
		body.Release()
		n.met.done(api.CodeOf(err))
		g.met.Done(began, api.CodeOf(err))
		gate.Problem(ctx, n.log, err)
		return
	}
	ctx.Response.Header.Set(api.HeaderServedBy, n.cfg.ID)
	ctx.Response.Header.Set(api.HeaderStart, sl.how())
	if sl.cold {
		<-sl.s.told // coordinators are to know of the new sandbox before their next call
	}
	gate.SetDuration(ctx, began)
	status := reply.Status
	err = reply.SendTo(ctx, func(err error) {
		sl.release()
		code := gate.Outcome(status, err, api.CodeFunctionIO)
		n.met.done(code)
		g.met.Done(began, code)
	})
	if err != nil {
		gate.Problem(ctx, n.log, api.Wrap(api.CodeFunctionCrashed, err, "the sandbox ended within its reply: "+n.lastWords(sl.s)))
	}
}

// accept makes the checks of package gate, and the node's own of the message's
// times. What it refuses has reached no agent and is not remembered.
func (g *gateway) accept(ctx *fasthttp.RequestCtx, name string, now time.Time) (*revision, *relay.Body, sealed.Peeked, error) {
	fn, err := gate.Name(ctx, name)
	if err != nil {
		return nil, nil, sealed.Peeked{}, err
	}
	body, peek, err := gate.Take(ctx, fn, g.limit)
	if err != nil {
		return nil, nil, peek, err
	}
	body.Watch(ctx, &g.n.callers)
	rev, err := g.hosted(fn, peek.Grant.Context)
	if err == nil {
		err = gate.Check(&peek, &gate.Function{Name: fn, Revision: peek.Grant.Context, Callers: &rev.desc.Config.Policy}, now)
	}
	if err == nil {
		err = checkTimes(&peek, rev)
	}
	if err != nil {
		body.Release()
		return nil, nil, peek, err
	}
	return rev, body, peek, nil
}

// hosted finds the revision that a message names among those of which a sandbox
// is here. Whether to have one at all is for a coordinator to decide, who sees
// the other nodes.
func (g *gateway) hosted(fn api.FunctionName, context sealed.Digest) (*revision, error) {
	var text [2 * len(context)]byte
	hex.Encode(text[:], context[:])
	rev, ok := g.n.revs.get(string(text[:]))
	here, draining := false, false
	if ok && rev.name == fn {
		g.n.mu.Lock()
		draining = g.n.draining
		for _, s := range g.n.byRev[rev.key()] {
			here = here || !s.retiring && s.state < stopping
		}
		g.n.mu.Unlock()
	}
	var e *api.Error
	switch {
	case draining:
		e = api.Errorf(api.CodeDraining, "node %s is about to stop", g.n.cfg.ID)
	case !here:
		e = api.Errorf(api.CodeMisdirected, "node %s has no sandbox of this revision of %s", g.n.cfg.ID, fn.Short())
		e.Field = "gateway"
	case rev.plain != nil:
		return nil, errPlain(rev)
	default:
		return rev, nil
	}
	e.Remedy = "send the invocation to the cluster's coordinator, which knows or makes a place for it"
	return nil, e
}
