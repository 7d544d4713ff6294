package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/nbio"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/store"
)

// adminTimeout bounds one of the operator's questions.
const adminTimeout = 20 * time.Second

// admin serves the operator's socket: join tokens, draining, members, snapshots.
type admin struct {
	life  context.Context
	desk  *enrol.Desk
	store *store.Store
	co    *coordinator.Coordinator
	log   *slog.Logger
}

func (a *admin) serve(ctx *fasthttp.RequestCtx) {
	rctx, cancel := context.WithTimeout(a.life, adminTimeout)
	defer cancel()
	var out any
	var err error
	path := string(ctx.Path())
	node, isDrain := strings.CutPrefix(path, enrol.AdminPathDrain)
	switch {
	case isDrain && (ctx.IsPut() || ctx.IsDelete()):
		out, err = struct{}{}, a.co.DrainNode(rctx, node, ctx.IsPut())
	case path == enrol.AdminPathTokens && ctx.IsPost():
		out, err = a.token(rctx, ctx.QueryArgs())
	case path == enrol.AdminPathMembers && ctx.IsGet():
		out, err = a.store.Members(rctx)
	case path == enrol.AdminPathMembers && ctx.IsDelete():
		out, err = struct{}{}, a.store.RemoveMember(rctx, string(ctx.QueryArgs().Peek("id")))
	case path == enrol.AdminPathBackup && ctx.IsGet():
		if err = a.snapshot(ctx); err == nil {
			return
		}
	default:
		err = api.Errorf(api.CodeNotFound, "%s %s is not served here", ctx.Method(), path)
	}
	var b []byte
	if err == nil {
		b, err = json.Marshal(out)
	}
	if err != nil {
		gate.Problem(ctx, a.log, err)
		return
	}
	ctx.SetContentType(api.ContentTypeJSON)
	ctx.SetBody(b)
}

func (a *admin) token(ctx context.Context, q *fasthttp.Args) (any, error) {
	ttl, err := time.ParseDuration(string(q.Peek("ttl")))
	if err != nil {
		return nil, api.Invalid("ttl", "use a duration such as 1h", err.Error())
	}
	text, err := a.desk.NewToken(ctx, pki.Role(q.Peek("role")), q.GetUintOrZero("uses"), ttl)
	return map[string]string{"token": text}, err
}

// snapshot streams the store as it is at one moment.
func (a *admin) snapshot(ctx *fasthttp.RequestCtx) error {
	r, err := a.store.Snapshot(a.life)
	if err != nil {
		return err
	}
	ctx.SetContentType("application/octet-stream")
	ctx.SetBodyStream(nbio.Download(ctx.Conn(), r), -1)
	return nil
}
