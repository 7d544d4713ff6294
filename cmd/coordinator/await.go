package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/store"
)

// openStore opens the store. While an external one is away, the gateway and the
// listener for metrics answer that this coordinator lives and is not ready, and why.
func openStore(ctx context.Context, o options, cfg store.Config, reg *prometheus.Registry, log *slog.Logger) (*store.Store, error) {
	if o.etcd == "" {
		return store.Open(ctx, cfg)
	}
	w := &waiting{log: log}
	work, give := context.WithCancelCause(ctx)
	defer give(nil)
	var g *daemon.Group // once there is something to wait for
	s, err := store.Await(work, cfg, func(why error) {
		w.why.Store(&why)
		if g != nil {
			return
		}
		g = daemon.NewGroup(ctx, log)
		if err := w.serve(g, o, reg); err != nil {
			give(err)
		}
	})
	if err != nil && ctx.Err() == nil && work.Err() != nil {
		err = context.Cause(work)
	}
	err = flagOf(err)
	if g != nil { // its listeners make room for those of later
		g.Stop()
		err = errors.Join(err, g.Wait())
	}
	if err != nil && s != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, err
}

// flagOf names the flag behind a field of store.Config.
func flagOf(err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	named := *e
	switch e.Field {
	case "store.endpoints":
		named.Field = "-etcd"
	case "store.tls":
		named.Field = "-etcd-ca, -etcd-cert, -etcd-key"
	default:
		return err
	}
	return &named
}

// waiting is a coordinator whose store is away.
type waiting struct {
	log *slog.Logger
	why atomic.Pointer[error] // of the last attempt
}

// serve opens the listeners at which somebody may ask how this coordinator is.
func (w *waiting) serve(g *daemon.Group, o options, reg *prometheus.Registry) error {
	for addr, h := range map[string]fasthttp.RequestHandler{o.listen: w.gateway, o.opsListen: daemon.Ops(reg, w.reason)} {
		if addr == "" {
			continue
		}
		ln, err := daemon.Listen(addr, nil)
		if err != nil {
			return err
		}
		g.Go("waiting on "+addr, func(ctx context.Context) error {
			return daemon.Serve(ctx, daemon.Server(h, w.log), ln, time.Second)
		})
	}
	return nil
}

// reason is why this coordinator is not ready.
func (w *waiting) reason() error {
	return &api.Error{Code: api.CodeUnavailable, Field: "store", Message: "waiting for the store to answer", Err: *w.why.Load()}
}

// gateway answers callers.
func (w *waiting) gateway(ctx *fasthttp.RequestCtx) {
	if string(ctx.Path()) == "/healthz" {
		ctx.SetBodyString("OK\n")
		return
	}
	ctx.SetConnectionClose() // of a body nothing was read
	ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, fmt.Sprint(int(retryAfter.Seconds())))
	gate.Problem(ctx, w.log, w.reason())
}

// retryAfter is when callers may ask again whom the store keeps waiting.
const retryAfter = 5 * time.Second
