package openfaas

import (
	"context"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

func (h *Handler) listNamespaces(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	names, err := h.dep.Namespaces.Namespaces(rctx)
	if err != nil {
		return err
	}
	return reply(ctx, names)
}

func (h *Handler) getNamespace(rctx context.Context, ctx *fasthttp.RequestCtx, name string) error {
	n, err := h.dep.Namespaces.Namespace(rctx, name)
	if err != nil {
		return err
	}
	return reply(ctx, n)
}

func (h *Handler) createNamespace(rctx context.Context, ctx *fasthttp.RequestCtx, path string) error {
	n, err := h.namespace(ctx, path)
	if err != nil {
		return err
	}
	if err := h.dep.Editor.CreateNamespace(rctx, n); err != nil {
		return err
	}
	ctx.SetStatusCode(fasthttp.StatusCreated)
	return nil
}

func (h *Handler) updateNamespace(rctx context.Context, ctx *fasthttp.RequestCtx, path string) error {
	n, err := h.namespace(ctx, path)
	if err != nil {
		return err
	}
	if err := h.dep.Editor.UpdateNamespace(rctx, n); err != nil {
		return err
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	return nil
}

// deleteNamespace goes by the path; clients send the namespace as well, or nothing.
func (h *Handler) deleteNamespace(rctx context.Context, ctx *fasthttp.RequestCtx, path string) error {
	if ctx.Request.Header.ContentLength() != 0 && ctx.Request.Header.ContentLength() != -2 {
		if _, err := h.namespace(ctx, path); err != nil {
			return err
		}
	}
	if err := api.CheckNamespace(path); err != nil {
		return err
	}
	if err := h.dep.Editor.DeleteNamespace(rctx, path); err != nil {
		return err
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	return nil
}

// namespace reads a body; the name in the path, if there is one, has to be the same.
func (h *Handler) namespace(ctx *fasthttp.RequestCtx, path string) (api.Namespace, error) {
	var n api.Namespace
	if err := h.decode(ctx, &n); err != nil {
		return n, err
	}
	if n.Name == "" {
		n.Name = path
	}
	if path != "" && n.Name != path {
		return n, api.Invalid("name", "name it as in the path", "the body and the path name different namespaces")
	}
	return n, api.CheckNamespace(n.Name)
}

func (h *Handler) info(_ context.Context, ctx *fasthttp.RequestCtx) error {
	return reply(ctx, info{Provider: providerInfo{Provider: "faasd-sec", Orchestration: "containerd", Version: h.cfg.Version}, Version: h.cfg.Version, Arch: h.cfg.Arch})
}
