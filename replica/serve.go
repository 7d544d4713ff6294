package replica

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
)

// Serve answers another coordinator that wants something to be copied to this
// one, once it is. Its caller made sure that it is a coordinator.
func (r *Replicas) Serve(ctx *fasthttp.RequestCtx) {
	r.jobs.Add(1)
	defer r.jobs.Done()
	var what api.Replicate
	err := json.Unmarshal(ctx.PostBody(), &what)
	switch {
	case err != nil:
		err = api.Invalid("body", "send what to replicate as JSON", err.Error())
	case !slices.Contains(r.cfg.Others(), what.From):
		err = api.Invalid("from", "name a coordinator that this one sees in the mesh", what.From+" is none")
	default:
		cctx, cancel := context.WithTimeout(r.life, copyTimeout)
		defer cancel()
		err = r.copy(cctx, what)
	}
	if err != nil {
		gate.Problem(ctx, r.cfg.Log, err)
		return
	}
	ctx.SetStatusCode(fasthttp.StatusNoContent)
}

// Through lets next serve a read of the registry, after a look at the other
// coordinators for what this one lacks.
func (r *Replicas) Through(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		if what, ok := named(string(ctx.Path())); ok && (ctx.IsGet() || ctx.IsHead()) {
			cctx, cancel := context.WithTimeout(r.life, copyTimeout)
			if _, err := r.Fetch(cctx, what); err != nil {
				r.cfg.Log.Warn("not fetched from another coordinator", "repository", what.Repository, "digest", what.Digest, "err", err)
			}
			cancel()
		}
		next(ctx)
	}
}

// named is what a path of the registry names by its digest.
func named(path string) (what api.Replicate, ok bool) {
	rest, ok := strings.CutPrefix(path, api.GatewayPathRegistry)
	if !ok {
		return what, false
	}
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		repo, digest, found := strings.Cut(rest, kind)
		if found && strings.HasPrefix(digest, "sha256:") {
			return api.Replicate{Repository: repo, Digest: digest, Blob: kind == "/blobs/"}, true
		}
	}
	return what, false
}
