package openfaas

import (
	"context"
	"fmt"
	"slices"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

func (h *Handler) listFunctions(_ context.Context, ctx *fasthttp.RequestCtx) error {
	ns, err := namespaceOf(ctx, "")
	if err != nil {
		return err
	}
	out := []status{}
	for _, f := range h.dep.Functions.Functions(ns) {
		out = append(out, statusOf(&f))
	}
	return reply(ctx, out)
}

func (h *Handler) getFunction(rctx context.Context, ctx *fasthttp.RequestCtx, name string) error {
	full, err := nameOf(ctx, name, "")
	if err != nil {
		return err
	}
	ask := string(ctx.QueryArgs().Peek("usage"))
	f, err := h.dep.Functions.Function(rctx, full, ask == "1" || ask == "true")
	if err != nil {
		return err
	}
	return reply(ctx, statusOf(&f))
}

// createFunction deploys, and updates where the name is there: clients ask first
// with PUT, and what they send then is what they want.
func (h *Handler) createFunction(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	name, d, err := h.deployment(ctx)
	if err != nil {
		return err
	}
	f, err := h.dep.Functions.Function(rctx, name, false)
	if err == nil && f.Sealed {
		return isSealed(name, "deployed")
	}
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		return err
	}
	return h.put(rctx, ctx, name, d)
}

func (h *Handler) updateFunction(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	name, d, err := h.deployment(ctx)
	if err != nil {
		return err
	}
	f, err := h.dep.Functions.Function(rctx, name, false)
	if err != nil {
		return err
	}
	if f.Sealed {
		return isSealed(name, "updated")
	}
	return h.put(rctx, ctx, name, d)
}

func (h *Handler) deployment(ctx *fasthttp.RequestCtx) (api.FunctionName, deployment, error) {
	var d deployment
	if err := h.decode(ctx, &d); err != nil {
		return "", d, err
	}
	name, err := nameOf(ctx, d.Service, d.Namespace)
	return name, d, err
}

func (h *Handler) put(rctx context.Context, ctx *fasthttp.RequestCtx, name api.FunctionName, d deployment) error {
	known, err := h.dep.Namespaces.Namespaces(rctx)
	if err != nil {
		return err
	}
	if ns := name.Namespace(); !slices.Contains(known, ns) {
		return api.Invalid("namespace", "create it: faas-cli namespace create "+ns, fmt.Sprintf("there is no namespace %q", ns))
	}
	if _, err := h.dep.Functions.PutPlain(rctx, name, d.plain(), string(ctx.Host())); err != nil {
		return err
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	return nil
}

func (h *Handler) deleteFunction(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	var req struct {
		FunctionName string `json:"functionName"`
		Namespace    string `json:"namespace"`
	}
	if err := h.decode(ctx, &req); err != nil {
		return err
	}
	name, err := nameOf(ctx, req.FunctionName, req.Namespace)
	if err != nil {
		return err
	}
	f, err := h.dep.Functions.Function(rctx, name, false)
	if err != nil {
		return err
	}
	if f.Sealed {
		return isSealed(name, "removed")
	}
	if err := h.dep.Functions.DeletePlain(rctx, name); err != nil {
		return err
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	return nil
}

func isSealed(name api.FunctionName, what string) error {
	return &api.Error{Code: api.CodeForbidden, Field: "name", Message: fmt.Sprintf("%s is a sealed function, and is %s by its owner alone", name.Short(), what),
		Remedy: "have its owner run faasd-sec deploy or faasd-sec remove, or choose another name"}
}

// maxReplicas keeps a slip of the finger from becoming a request for the machine.
const maxReplicas = 10000

// scaleFunction goes by the path's name, as other gateways do.
func (h *Handler) scaleFunction(rctx context.Context, ctx *fasthttp.RequestCtx, path string) error {
	var req struct {
		Replicas  *uint64 `json:"replicas"`
		Namespace string  `json:"namespace"`
	}
	if err := h.decode(ctx, &req); err != nil {
		return err
	}
	name, err := nameOf(ctx, path, req.Namespace)
	if err != nil {
		return err
	}
	if req.Replicas == nil || *req.Replicas > maxReplicas {
		return api.Invalid("replicas", fmt.Sprintf("send a number from 0 to %d", maxReplicas), "it is missing or too large")
	}
	if _, err := h.dep.Functions.Function(rctx, name, false); err != nil {
		return err
	}
	if h.dep.Scaler == nil {
		return missing("scaling by hand")
	}
	if err := h.dep.Scaler.ScaleFunction(rctx, name, int(*req.Replicas)); err != nil {
		return err
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	return nil
}
