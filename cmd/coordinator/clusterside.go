package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/registry"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/replica"
)

// clusterSide is what the cluster listener serves to other coordinators.
type clusterSide struct {
	life     context.Context
	desk     *enrol.Desk
	replicas *replica.Replicas
	images   *registry.Registry
	waits    fasthttp.RequestHandler // tells what waits for room here
	demand   fasthttp.RequestHandler // tells what is known here of the demand for a function
	log      *slog.Logger
}

// serve answers coordinators, and those who join as one; all else is for nodes.
func (c *clusterSide) serve(nodes fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		path := string(ctx.Path())
		switch {
		case path == api.GatewayPathJoinCoordinator && ctx.IsPost():
			c.bounded(ctx, c.join)
		case peerOf(ctx, pki.RoleCoordinator) == "":
			nodes(ctx)
		case path == api.GatewayPathReplicate && ctx.IsPost():
			c.bounded(ctx, c.replicas.Serve)
		case path == api.GatewayPathWaits && ctx.IsGet():
			c.waits(ctx)
		case strings.HasPrefix(path, api.GatewayPathDemand) && ctx.IsGet():
			c.demand(ctx)
		case strings.HasPrefix(path, api.GatewayPathRegistry) && (ctx.IsGet() || ctx.IsHead()):
			c.images.ServeFastHTTP(ctx) // what is here: who asks goes on by itself
		default:
			gate.Problem(ctx, c.log, api.Errorf(api.CodeNotFound, "%s %s is not served to coordinators", ctx.Method(), path))
		}
	}
}

// maxQuestion bounds the body of what is asked here, in bytes.
const maxQuestion = 64 << 10

// bounded lets next have the body of a request, all of it. Who asks may be anybody
// yet, and fasthttp by itself would read on for as long as something comes.
func (c *clusterSide) bounded(ctx *fasthttp.RequestCtx, next fasthttp.RequestHandler) {
	body, err := relay.ReadBody(ctx, maxQuestion)
	if err != nil {
		gate.Problem(ctx, c.log, err)
		return
	}
	ctx.Request.SetBody(body.Head) // a copy
	body.Release()
	next(ctx)
}

func (c *clusterSide) join(ctx *fasthttp.RequestCtx) {
	rctx, cancel := context.WithTimeout(c.life, adminTimeout)
	defer cancel()
	var req api.CoordinatorJoin
	err := json.Unmarshal(ctx.PostBody(), &req)
	if err != nil {
		err = api.Invalid("body", "send a join request as JSON", err.Error())
	}
	var reply api.CoordinatorJoined
	if err == nil {
		reply, err = c.desk.JoinCoordinator(rctx, req)
	}
	var b []byte
	if err == nil {
		b, err = json.Marshal(reply)
	}
	if err != nil {
		gate.Problem(ctx, c.log, err)
		return
	}
	c.log.Info("a coordinator joins", "id", req.ID, "peer", req.Peer)
	ctx.SetContentType(api.ContentTypeJSON)
	ctx.SetBody(b)
}
