package node

import (
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// phase is a part of a sandbox's start that is over.
type phase struct {
	name     string
	from, to time.Time
}

// passed notes a part of s's start that began then and is over now.
func (n *Node) passed(s *sandbox, name string, from time.Time) {
	if n.dep.Trace == nil {
		return
	}
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	s.phases = append(s.phases, phase{name, from, now})
}

// startedFor is the key under which an invocation that waited for a start has its
// sandbox among the request's values.
type startedFor struct{}

// traced serves an invocation as a span of its caller's trace. Where it waited for
// a start, the start's parts are parts of it.
func (n *Node) traced(ctx *fasthttp.RequestCtx, name string, serve func(*fasthttp.RequestCtx, string)) {
	span := n.dep.Trace.Start(ctx.Request.Header.Peek(api.HeaderTrace), "node")
	if span == nil {
		serve(ctx, name)
		return
	}
	defer span.End()
	ctx.Request.Header.Set(api.HeaderTrace, span.Traceparent()) // for the function, where it is plain
	serve(ctx, name)
	span.Node(n.cfg.ID)
	h := &ctx.Response.Header
	span.Call(string(h.Peek(api.HeaderCallID)))
	span.Began(string(h.Peek(api.HeaderStart)))
	span.Status(ctx.Response.StatusCode())
	span.Failed(api.Code(h.Peek(api.HeaderRefused)))
	s, ok := ctx.UserValue(startedFor{}).(*sandbox)
	if !ok {
		return
	}
	n.mu.Lock()
	from, to, parts := s.began, s.readyAt, s.phases
	n.mu.Unlock()
	span.Past("start", from, to)
	for _, p := range parts {
		span.Past("start."+p.name, p.from, p.to)
	}
}
