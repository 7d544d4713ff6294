package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/tracing"
)

// Invoker seals, sends and opens with one identity. *client.Client is one.
type Invoker interface {
	Invoke(ctx context.Context, name api.FunctionName, req client.Request) (*client.Response, error)
}

var _ Invoker = (*client.Client)(nil)

// Deps are what a Proxy works with.
type Deps struct {
	Callers    map[string]Invoker // by identity, one for each of Config.Identities
	Pins       *client.Pins       // by which they believe, to keep up with their file; nil leaves them as they are
	Token      string             // of Config.TokenFile; "" for none
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil for none
	Trace      *tracing.Tracer       // nil traces nothing
}

// Proxy serves plain HTTP for sealed functions. It is safe for concurrent use.
type Proxy struct {
	cfg    Config
	access access
	routes []*route
	call   map[string]Invoker
	log    *slog.Logger
	met    *metrics
	trace  *tracing.Tracer
	life   context.Context
	kill   context.CancelFunc

	callers relay.Callers
}

// New checks cfg and makes a proxy. When ctx ends, so does every exchange under
// way: pass one that outlives the server's shutdown.
func New(ctx context.Context, cfg Config, dep Deps) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.TokenFile != "" && dep.Token == "" {
		return nil, api.Invalid("token_file", "write a token into it", "there is no token")
	}
	p := &Proxy{cfg: cfg, call: dep.Callers, log: dep.Log, met: newMetrics(dep.Registerer), trace: dep.Trace}
	var err error
	if p.access, err = newAccess(dep.Token, !strings.HasPrefix(cfg.Listen, "unix:")); err != nil {
		return nil, err
	}
	for i := range cfg.Routes {
		r, err := compile(i, &cfg.Routes[i])
		if err != nil {
			return nil, err
		}
		if dep.Callers[r.Identity] == nil {
			return nil, fmt.Errorf("proxy: Deps.Callers has no identity %q", r.Identity)
		}
		p.routes = append(p.routes, r)
	}
	p.followPins(dep.Pins)
	p.life, p.kill = context.WithCancel(ctx)
	return p, nil
}

// Close ends what is still under way.
func (p *Proxy) Close() { p.kill() }

// Handler serves callers.
func (p *Proxy) Handler() fasthttp.RequestHandler { return p.serve }

// HandleError answers what is not a request, or too large a head.
func (p *Proxy) HandleError(ctx *fasthttp.RequestCtx, err error) {
	if _, ok := err.(*fasthttp.ErrSmallBuffer); ok {
		ctx.SetConnectionClose()
		p.problem(ctx, &api.Error{Code: api.CodeTooLarge, Field: "headers", Message: "the request's headers are over the limit",
			Remedy: "send at most 16 KiB of them, and the rest in the body"})
		ctx.SetStatusCode(fasthttp.StatusRequestHeaderFieldsTooLarge)
		return
	}
	gate.ErrorHandler(silent)(ctx, err)
}

// silent is for what would log a path, which is the caller's secret here.
var silent = slog.New(slog.DiscardHandler)

// problem refuses with err.
func (p *Proxy) problem(ctx *fasthttp.RequestCtx, err error) {
	if api.CodeOf(err) == api.CodeInternal {
		p.log.Error("request failed", "call", string(ctx.Response.Header.Peek(api.HeaderCallID)), "err", err)
	}
	gate.Problem(ctx, silent, err)
}

const asyncPrefix = "/async-function/"

func (p *Proxy) serve(ctx *fasthttp.RequestCtx) {
	began := time.Now()
	p.met.inFlight.Inc()
	x := &exchange{proxy: p, ctx: ctx, began: began, route: noRoute}
	if err := x.serve(); err != nil {
		x.end(err)
		p.problem(ctx, err)
	}
}

// target splits a request's target into function, path and query, as they were
// written.
func target(uri string) (fn api.FunctionName, path, query string, err error) {
	uri, _, _ = strings.Cut(uri, "#")
	full, query, _ := strings.Cut(uri, "?")
	rest, ok := strings.CutPrefix(full, api.GatewayPathInvoke)
	if !ok {
		if strings.HasPrefix(full, asyncPrefix) {
			return "", "", "", &api.Error{Code: api.CodeInvalid, Field: "path", Message: "the proxy serves no asynchronous invocations: it would have to keep their results open",
				Remedy: "call " + api.GatewayPathInvoke + "NAME and wait for the reply, or use faasd-sec invoke --async"}
		}
		return "", "", "", &api.Error{Code: api.CodeNotFound, Field: "path", Message: "only functions are served here",
			Remedy: "call " + api.GatewayPathInvoke + "NAME[.NAMESPACE][/PATH]; everything else is the gateway's"}
	}
	name, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		name, path = rest[:i], rest[i:]
	}
	fn, err = api.ParseFunctionName(name)
	return fn, path, query, err
}
