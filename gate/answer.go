package gate

import (
	"encoding/json"
	"log/slog"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// Problem replies with err as a problem document that names the call.
func Problem(ctx *fasthttp.RequestCtx, log *slog.Logger, err error) {
	id := string(ctx.Response.Header.Peek(api.HeaderCallID))
	p := api.ProblemOf(err, id)
	if p.Code == api.CodeInternal {
		log.Error("request failed", "path", string(ctx.Path()), "call", id, "err", err)
	}
	if p.Code == api.CodeBusy || p.Code == api.CodeNoRoom {
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "1")
	}
	b, jerr := json.Marshal(p)
	if jerr != nil { // strings and numbers always encode
		ctx.SetStatusCode(fasthttp.StatusInternalServerError)
		return
	}
	ctx.SetStatusCode(p.Status)
	ctx.SetContentType(api.ContentTypeProblem)
	ctx.SetBody(b)
}

// ErrorHandler turns what fasthttp refuses by itself into problem documents.
func ErrorHandler(log *slog.Logger) func(*fasthttp.RequestCtx, error) {
	return func(ctx *fasthttp.RequestCtx, err error) {
		ctx.SetConnectionClose()
		switch e := err.(type) {
		case *fasthttp.ErrSmallBuffer:
			p := api.Errorf(api.CodeTooLarge, "the request's headers are over the limit")
			p.Field, p.Remedy = "headers", "everything that matters travels inside the sealed body"
			Problem(ctx, log, p)
			ctx.SetStatusCode(fasthttp.StatusRequestHeaderFieldsTooLarge)
		default:
			if t, ok := e.(interface{ Timeout() bool }); ok && t.Timeout() {
				Problem(ctx, log, api.Errorf(api.CodeDeadline, "the request came too slowly"))
				ctx.SetStatusCode(fasthttp.StatusRequestTimeout)
				return
			}
			Problem(ctx, log, api.Errorf(api.CodeInvalid, "this is not an HTTP request"))
		}
	}
}

// SetDuration tells the caller how long the gateway has had the call so far.
func SetDuration(ctx *fasthttp.RequestCtx, began time.Time) {
	var text [32]byte
	ctx.Response.Header.SetBytesV(api.HeaderDuration, strconv.AppendFloat(text[:0], time.Since(began).Seconds(), 'f', 6, 64))
}
