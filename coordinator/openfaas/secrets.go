package openfaas

import (
	"context"
	"fmt"
	"slices"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// maxSecret is what one secret may have in bytes, as in Kubernetes' objects.
const maxSecret = 512 << 10

func (h *Handler) listSecrets(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	ns, err := namespaceOf(ctx, "")
	if err != nil {
		return err
	}
	if h.dep.Secrets == nil {
		return missing("secrets")
	}
	names, err := h.dep.Secrets.List(rctx, ns)
	if err != nil {
		return err
	}
	out := make([]secret, 0, len(names))
	for _, n := range names {
		out = append(out, secret{Name: n, Namespace: ns})
	}
	return reply(ctx, out)
}

func (h *Handler) createSecret(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	s, exists, err := h.secret(rctx, ctx)
	if err != nil {
		return err
	}
	if exists {
		return &api.Error{Code: api.CodeConflict, Field: "name", Message: fmt.Sprintf("secret %s already exists in %s", s.Name, s.Namespace), Remedy: "update it: faas-cli secret update " + s.Name}
	}
	known, err := h.dep.Namespaces.Namespaces(rctx)
	if err != nil {
		return err
	}
	if !slices.Contains(known, s.Namespace) {
		return api.Invalid("namespace", "create it: faas-cli namespace create "+s.Namespace, fmt.Sprintf("there is no namespace %q", s.Namespace))
	}
	return h.putSecret(rctx, ctx, s, fasthttp.StatusCreated)
}

func (h *Handler) updateSecret(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	s, exists, err := h.secret(rctx, ctx)
	if err != nil {
		return err
	}
	if !exists {
		return noSecret(s)
	}
	return h.putSecret(rctx, ctx, s, fasthttp.StatusAccepted)
}

func (h *Handler) putSecret(rctx context.Context, ctx *fasthttp.RequestCtx, s secret, status int) error {
	value := s.RawValue
	if len(value) == 0 {
		value = []byte(s.Value)
	}
	defer clear(value)
	if len(value) == 0 || len(value) > maxSecret {
		return api.Invalid("value", fmt.Sprintf("send 1 to %d bytes as value or rawValue", maxSecret), fmt.Sprintf("it has %d bytes", len(value)))
	}
	if err := h.dep.Secrets.Put(rctx, s.Namespace, s.Name, value); err != nil {
		return err
	}
	ctx.SetStatusCode(status)
	return nil
}

func (h *Handler) deleteSecret(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	s, exists, err := h.secret(rctx, ctx)
	if err != nil {
		return err
	}
	if !exists {
		return noSecret(s)
	}
	if err := h.dep.Secrets.Delete(rctx, s.Namespace, s.Name); err != nil {
		return err
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
	return nil
}

// secret reads a request about one secret and tells whether it is there.
func (h *Handler) secret(rctx context.Context, ctx *fasthttp.RequestCtx) (s secret, exists bool, err error) {
	if err := h.decode(ctx, &s); err != nil {
		return s, false, err
	}
	if s.Namespace, err = namespaceOf(ctx, s.Namespace); err != nil {
		return s, false, err
	}
	if err := api.CheckSecretName(s.Name); err != nil {
		return s, false, err
	}
	if h.dep.Secrets == nil {
		return s, false, missing("secrets")
	}
	names, err := h.dep.Secrets.List(rctx, s.Namespace)
	return s, slices.Contains(names, s.Name), err
}

func noSecret(s secret) error {
	return &api.Error{Code: api.CodeNotFound, Field: "name", Message: fmt.Sprintf("there is no secret %s in %s", s.Name, s.Namespace), Remedy: "create it: faas-cli secret create " + s.Name}
}
