package coordinator

import (
	"context"
	"strings"
	"sync"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// startAsync begins to work on what waits.
func (c *Coordinator) startAsync(a *Async) {
	if a == nil {
		return
	}
	c.async = a.settle()
	c.uploads = make(chan struct{}, c.async.Schedules.Uploads)
	c.met.observeQueue(a.Queue)
	c.met.observeSchedules(a.Queue, c.async.Schedules)
	// Attempts and callbacks under way when the coordinator ends write what came of
	// them, for which they need the lease.
	life, end := context.WithCancel(context.WithoutCancel(c.life))
	var leased sync.WaitGroup
	leased.Go(c.dispatch)
	leased.Go(c.callback)
	c.spawn(func() { leased.Wait(); end() })
	c.spawn(func() { _ = a.Queue.Run(life) })
	c.spawn(c.buryExpired)
	c.spawn(c.collectBlobs)
	c.spawn(c.clock)
	c.spawn(c.sealedClock)
}

// routeAsync serves the paths of asynchronous invocations, and reports whether
// it was one.
func (c *Coordinator) routeAsync(ctx *fasthttp.RequestCtx, path string) bool {
	if name, ok := strings.CutPrefix(path, api.GatewayPathAsync); ok {
		c.serveAsync(ctx, name)
		return true
	}
	if id, ok := strings.CutPrefix(path, api.GatewayPathResults); ok {
		c.serveResult(ctx, id)
		return true
	}
	for below, serve := range map[string]func(*fasthttp.RequestCtx, string) (any, error){
		api.GatewayPathAsyncCalls: c.serveCalls, api.GatewayPathSchedules: c.serveSchedules,
	} {
		rest, ok := strings.CutPrefix(path, below)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		out, err := serve(ctx, strings.TrimPrefix(rest, "/"))
		switch {
		case err != nil:
			c.problem(ctx, err)
		case out == nil:
			ctx.SetStatusCode(fasthttp.StatusNoContent)
		default:
			c.reply(ctx, out)
		}
		return true
	}
	if path == api.GatewayPathCallbackKey && ctx.IsGet() {
		c.serveCallbackKeys(ctx)
		return true
	}
	return false
}
