package node

import (
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/relay"
)

// parsePlain is parse of a plain function. Its settings are the coordinator's word.
func (r *revisions) parsePlain(digest string, rec api.Revision) (*revision, error) {
	p := rec.Plain
	name, err := api.ParseFunctionName(string(p.Name))
	if err != nil || name != p.Name {
		return nil, api.Invalid("name", "write NAME.NAMESPACE", "it is not a full function name")
	}
	got, err := p.Function.Revision(name, p.Image)
	if err != nil {
		return nil, err
	}
	if got != digest {
		return nil, api.Invalid("revision", "use the digest of the settings", "the settings are another revision's")
	}
	s, err := p.Function.Settle()
	if err != nil {
		return nil, err
	}
	return &revision{
		digest: digest, id: digest + ":" + strconv.FormatUint(p.Sequence, 10), seq: p.Sequence, name: name, plain: p, rec: rec,
		image: p.Image, inet: true, limits: s.Resources, slots: s.MaxInFlight,
		start: r.cfg.StartTimeout + s.Start, bound: s.Read + s.Write + s.Exec + time.Second,
	}, nil
}

// secrets are the names of those that a plain function gets.
func (r *revision) secrets() []string {
	if r.plain == nil {
		return nil
	}
	return r.plain.Function.Secrets
}

// errPlain refuses a sealed message to a function that cannot open it.
func errPlain(rev *revision) error {
	e := api.Errorf(api.CodeMediaType, "%q is a plain function and takes no sealed request", rev.name.Short())
	e.Field, e.Remedy = "Content-Type", "send the request as it is"
	return e
}

// servePlain passes one request on to a plain function's sandbox as it is. Refusals
// are marked as those of serveInvoke; what this node or the agent answers by itself
// has a HeaderFunctionErr.
func (n *Node) servePlain(ctx *fasthttp.RequestCtx, name string) {
	n.met.inFlight.Inc()
	body, err := relay.ReadBody(ctx, n.cfg.MaxBody)
	if err != nil {
		n.plainFailed(ctx, err, false)
		return
	}
	body.WatchOurs(ctx, &n.callers)
	rev, err := n.lookup(ctx, name)
	if err == nil && rev.plain == nil {
		err = api.Errorf(api.CodeMediaType, "%q is a sealed function", rev.name.Short())
	}
	var sl slot
	if err == nil {
		sl, err = n.slotFor(ctx, rev, nil, nil)
	}
	if err != nil {
		body.Release()
		n.plainFailed(ctx, err, true)
		return
	}
	var sent func()
	if sl.first {
		sent = n.touch
	}
	req := relay.Request{Method: string(ctx.Method()), Path: api.AgentPathPlain, Headers: relay.Headers(ctx, n.forAgent), Sent: sent, All: true}
	if body.Small && ctx.Request.Header.ConnectionUpgrade() {
		req.Upgrade = string(ctx.Request.Header.Peek(fasthttp.HeaderUpgrade))
	}
	reply, err := sl.s.up.Do(time.Now().Add(rev.bound), req, body)
	if err != nil {
		err = n.brokeOff(sl, err)
		sl.release()
		body.Release()
		n.plainFailed(ctx, err, false)
		return
	}
	own := reply.Header(api.HeaderFunctionErr) != ""
	err = reply.SendAll(ctx, func(err error) {
		sl.release()
		switch {
		case err != nil:
			n.met.done(gate.Broke(err, api.CodeFunctionIO))
		case own:
			n.met.done(api.CodeAgentRefused)
		default:
			n.met.done("ok")
		}
	}, fromAgent)
	if err != nil {
		n.plainProblem(ctx, api.Wrap(api.CodeFunctionCrashed, err, "the sandbox ended within its reply: "+n.lastWords(sl.s)))
		return
	}
	ctx.Response.Header.Set(api.HeaderServedBy, n.cfg.ID)
	ctx.Response.Header.Set(api.HeaderStart, sl.how())
	if sl.cold {
		<-sl.s.told
	}
	if l := n.load.Load(); l != nil && time.Since(l.at) < loadFresh {
		carry(ctx, l)
	}
}

// forAgent reports which headers of a coordinator's request are for the agent.
func (n *Node) forAgent(name string) bool {
	return !strings.HasPrefix(name, "x-faasd-sec-") || strings.EqualFold(name, api.HeaderTarget)
}

// fromAgent reports which headers of an agent's reply to a plain request are passed
// on. Those of ours are this node's word to the coordinator, but for who speaks: a
// function that had them through could refuse in its node's name, so that its call is
// made again elsewhere, or tell of any node what it has free.
func fromAgent(name string) bool {
	return !strings.HasPrefix(name, "x-faasd-sec-") || strings.EqualFold(name, api.HeaderFunctionErr)
}

// plainFailed answers for the platform; refused says that no byte reached an agent.
func (n *Node) plainFailed(ctx *fasthttp.RequestCtx, err error, refused bool) {
	n.met.done(api.CodeOf(err))
	if refused {
		n.refuse(ctx, err)
	} else {
		n.problem(ctx, err)
	}
	ctx.Response.Header.Set(api.HeaderFunctionErr, string(api.CodeOf(err)))
}

func (n *Node) plainProblem(ctx *fasthttp.RequestCtx, err error) {
	n.problem(ctx, err)
	ctx.Response.Header.Set(api.HeaderFunctionErr, string(api.CodeOf(err)))
}
