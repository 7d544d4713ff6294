package openfaas

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// Prefix begins the paths that a Handler serves.
const Prefix = "/system/"

// requestTimeout bounds a request but for logs that are followed; what takes
// longest is a deployment that asks a registry far away.
const requestTimeout = 45 * time.Second

// Config sets up a Handler.
type Config struct {
	Credentials *Credentials // nil: everything is refused
	Version     Version
	Arch        string // of this process, as GOARCH
}

// Deps are what a Handler works with. Those that are nil are refused as not there.
type Deps struct {
	Functions  Functions
	Scaler     Scaler
	Secrets    Secrets
	Namespaces Namespaces
	Editor     NamespaceEditor
	Logs       Logs
	ReadBody   func(*fasthttp.RequestCtx) ([]byte, error) // of bounded size
	Origin     func(net.Addr) netip.Addr                  // whom an address belongs to
	Log        *slog.Logger
}

// Handler serves the API. It has no goroutines.
type Handler struct {
	cfg     Config
	dep     Deps
	life    context.Context
	guesses *guesses
}

// New makes a Handler. Requests under way end with life.
func New(life context.Context, cfg Config, dep Deps) *Handler {
	return &Handler{cfg: cfg, dep: dep, life: life, guesses: newGuesses(time.Now)}
}

// Serve answers a request below Prefix.
func (h *Handler) Serve(ctx *fasthttp.RequestCtx) {
	if !h.Admit(ctx) {
		ctx.SetConnectionClose() // its body is unread
		return
	}
	rctx, cancel := context.WithTimeout(h.life, requestTimeout)
	defer cancel()
	if err := h.route(rctx, ctx); err != nil {
		h.fail(ctx, err)
	}
}

// TakesPassword reports whether there is a password at all.
func (h *Handler) TakesPassword() bool { return h.cfg.Credentials != nil }

// Admit checks the credentials, and answers where they do not admit.
func (h *Handler) Admit(ctx *fasthttp.RequestCtx) bool {
	if h.cfg.Credentials == nil {
		ctx.SetStatusCode(fasthttp.StatusForbidden)
		text(ctx, "the OpenFaaS API is off on this gateway: it has no password (start the coordinator with -basic-auth-dir)")
		return false
	}
	user, password, given := basic(string(ctx.Request.Header.Peek(fasthttp.HeaderAuthorization)))
	if given {
		ok := h.cfg.Credentials.match(user, password)
		if wait := h.guesses.judge(h.dep.Origin(ctx.RemoteAddr()), ok); wait > 0 {
			ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, strconv.Itoa(int(math.Ceil(wait.Seconds()))))
			ctx.SetStatusCode(fasthttp.StatusTooManyRequests)
			text(ctx, "too many wrong passwords came from this address: wait, and log in again")
			return false
		}
		if ok {
			return true
		}
		h.dep.Log.Warn("wrong credentials for the OpenFaaS API", "from", ctx.RemoteAddr())
	}
	ctx.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, `Basic realm="Restricted"`)
	ctx.SetStatusCode(fasthttp.StatusUnauthorized)
	text(ctx, "invalid credentials")
	return false
}

// basic reads credentials. What is none of Basic's, such as the empty bearer token
// of clients that are not logged in, guesses nothing.
func basic(header string) (user, password string, given bool) {
	scheme, value, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	if err != nil {
		return "", "", false
	}
	user, password, given = strings.Cut(string(b), ":")
	return user, password, given
}

// verbs are the methods of a route.
type verbs map[string]func(context.Context, *fasthttp.RequestCtx) error

func (h *Handler) route(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	area, name, _ := strings.Cut(strings.TrimRight(strings.TrimPrefix(string(ctx.Path()), Prefix), "/"), "/")
	named := func(f func(context.Context, *fasthttp.RequestCtx, string) error) func(context.Context, *fasthttp.RequestCtx) error {
		return func(rctx context.Context, ctx *fasthttp.RequestCtx) error { return f(rctx, ctx, name) }
	}
	var v verbs
	switch {
	case area == "functions" && name == "":
		v = verbs{"GET": h.listFunctions, "POST": h.createFunction, "PUT": h.updateFunction, "DELETE": h.deleteFunction}
	case area == "function" && name != "":
		v = verbs{"GET": named(h.getFunction)}
	case area == "scale-function" && name != "":
		v = verbs{"POST": named(h.scaleFunction)}
	case area == "secrets" && name == "":
		v = verbs{"GET": h.listSecrets, "POST": h.createSecret, "PUT": h.updateSecret, "DELETE": h.deleteSecret}
	case area == "namespaces" && name == "":
		v = verbs{"GET": h.listNamespaces}
	case area == "namespace":
		v = verbs{"POST": named(h.createNamespace), "GET": named(h.getNamespace), "PUT": named(h.updateNamespace), "DELETE": named(h.deleteNamespace)}
	case area == "info" && name == "":
		v = verbs{"GET": h.info}
	case area == "logs" && name == "":
		v = verbs{"GET": h.logs}
	default:
		return api.Errorf(api.CodeNotFound, "%s is not served here", ctx.Path())
	}
	if f := v[string(ctx.Method())]; f != nil {
		return f(rctx, ctx)
	}
	allow := make([]string, 0, len(v))
	for _, m := range []string{"GET", "POST", "PUT", "DELETE"} {
		if v[m] != nil {
			allow = append(allow, m)
		}
	}
	ctx.Response.Header.Set(fasthttp.HeaderAllow, strings.Join(allow, ", "))
	return api.Errorf(api.CodeMethod, "%s does not take %s", ctx.Path(), ctx.Method())
}

// fail answers in plain text, as clients print it.
func (h *Handler) fail(ctx *fasthttp.RequestCtx, err error) {
	ctx.SetConnectionClose() // a body may be unread
	var e *api.Error
	if !errors.As(err, &e) || e.Code == api.CodeInternal {
		h.dep.Log.Error("request failed", "path", string(ctx.Path()), "err", err)
		e = api.Errorf(api.CodeInternal, "internal error; the coordinator's log has more")
	}
	s := e.Message
	if e.Field != "" {
		s = e.Field + ": " + s
	}
	if e.Remedy != "" {
		s += " (" + e.Remedy + ")"
	}
	ctx.SetStatusCode(e.Status())
	text(ctx, s)
}

func text(ctx *fasthttp.RequestCtx, s string) {
	ctx.SetContentType("text/plain; charset=utf-8")
	ctx.SetBodyString(s)
}

// reply sends v as JSON with status 200.
func reply(ctx *fasthttp.RequestCtx, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx.SetContentType(api.ContentTypeJSON)
	ctx.SetBody(b)
	return nil
}

// decode reads a JSON body into v, and wipes it: secrets come in bodies.
func (h *Handler) decode(ctx *fasthttp.RequestCtx, v any) error {
	b, err := h.dep.ReadBody(ctx)
	if err != nil {
		return err
	}
	defer clear(b)
	if err := json.Unmarshal(b, v); err != nil {
		return api.Invalid("body", "send JSON as the OpenFaaS API has it", describe(err))
	}
	return nil
}

// describe says what is wrong with JSON without quoting any of it.
func describe(err error) string {
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) && kind.Field == "" {
		return "it is JSON, and no object"
	}
	if kind != nil {
		return "the field " + kind.Field + " has another type"
	}
	return "it is not JSON"
}

// namespaceOf is the namespace of a request, by its body, its query or by default.
func namespaceOf(ctx *fasthttp.RequestCtx, inBody string) (string, error) {
	asked := string(ctx.QueryArgs().Peek("namespace"))
	switch {
	case inBody == "" && asked == "":
		return api.DefaultNamespace, nil
	case inBody != "" && asked != "" && inBody != asked:
		return "", api.Invalid("namespace", "name it once", "the body and the query name different ones")
	case inBody == "":
		inBody = asked
	}
	return inBody, api.CheckNamespace(inBody)
}

// nameOf is a function's full name. A name that has its namespace with it, as in an
// invocation's path, is taken where no other is given.
func nameOf(ctx *fasthttp.RequestCtx, name, inBody string) (api.FunctionName, error) {
	if strings.Contains(name, ".") && inBody == "" && !ctx.QueryArgs().Has("namespace") {
		return api.ParseFunctionName(name)
	}
	ns, err := namespaceOf(ctx, inBody)
	if err != nil {
		return "", err
	}
	if own, ok := strings.CutSuffix(name, "."+ns); ok {
		name = own
	}
	if strings.Contains(name, ".") {
		return "", api.Invalid("name", "name one namespace", "the name has another namespace than the request")
	}
	return api.ParseFunctionName(name + "." + ns)
}

// missing refuses what this cluster has no part for.
func missing(what string) error {
	return api.Errorf(api.CodeUnavailable, "this gateway has no %s", what)
}
