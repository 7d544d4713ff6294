package coordinator

import (
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
)

// traced serves an invocation as a span of its caller's trace.
func (c *Coordinator) traced(ctx *fasthttp.RequestCtx, name string, serve func(*fasthttp.RequestCtx, string)) {
	span := c.dep.Trace.Start(ctx.Request.Header.Peek(api.HeaderTrace), "coordinator")
	if span == nil {
		serve(ctx, name)
		return
	}
	defer span.End()
	ctx.Request.Header.Set(api.HeaderTrace, span.Traceparent()) // for whoever comes next
	if fn, err := api.ParseFunctionName(name); err == nil {
		span.Function(fn)
	}
	serve(ctx, name)
	h := &ctx.Response.Header
	span.Call(string(h.Peek(api.HeaderCallID)))
	span.Node(string(h.Peek(api.HeaderServedBy)))
	span.Began(string(h.Peek(api.HeaderStart)))
	span.Status(ctx.Response.StatusCode())
}

// traceHeader is what makes a node's part of a sealed invocation a child of its
// span; none where nothing is traced.
func (c *Coordinator) traceHeader(ctx *fasthttp.RequestCtx) []relay.Header {
	if c.dep.Trace == nil {
		return nil
	}
	return []relay.Header{{Name: api.HeaderTrace, Value: string(ctx.Request.Header.Peek(api.HeaderTrace))}}
}
