package proxy

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/relay"
)

// headerCallback asks OpenFaaS gateways to post a result elsewhere.
const headerCallback = "X-Callback-Url"

// patience is below what the server gives a small body to come, so that a longer
// timeout of a route does not lengthen that.
const patience = 10 * time.Second

// exchange is one request on its way. The server reads it as the reply's body
// and closes it, once there is one.
type exchange struct {
	proxy *Proxy
	ctx   *fasthttp.RequestCtx
	began time.Time
	route string
	until time.Time

	cancel  context.CancelFunc
	body    *relay.Body
	upload  io.Closer // what reads body; nil for none
	reply   io.ReadCloser
	failed  error // what broke the reply off
	started bool
	once    sync.Once
}

// serve makes the reply, its body still flowing. After an error there is none.
func (x *exchange) serve() error {
	ctx := x.ctx
	id := gate.CallID(ctx)
	fn, path, query, r, err := x.admit()
	if err != nil {
		return gate.Unread(ctx, err)
	}
	needs, err := x.needs(r.Route)
	if err != nil {
		return gate.Unread(ctx, err)
	}
	x.until = x.began.Add(r.Timeout)
	if r.Timeout < patience {
		_ = ctx.Conn().SetReadDeadline(x.until)
	}
	if x.body, err = relay.ReadBody(ctx, x.proxy.cfg.MaxBody); err != nil {
		return err
	}
	x.body.Watch(ctx, &x.proxy.callers)
	req := client.Request{Method: string(ctx.Method()), Path: path, Query: query, Header: requestHeader(ctx), CallID: id, Stream: r.Stream, Needs: needs}
	switch {
	case !x.body.Small:
		u := x.body.Reader(x.until)
		x.upload, req.Body = u, u
	case len(x.body.Head) > 0: // a copy: it can be sent again, and outlives this handler
		req.Body = bytes.NewReader(bytes.Clone(x.body.Head))
	}
	var ictx context.Context
	ictx, x.cancel = context.WithDeadline(x.proxy.life, x.until)
	x.body.WhenGone(x.cancel)
	span := x.proxy.trace.Start(ctx.Request.Header.Peek(api.HeaderTrace), "proxy")
	defer span.End()
	span.Function(fn)
	span.Call(id)
	req.Trace = span.Traceparent()
	res, err := x.proxy.call[r.Identity].Invoke(ictx, fn, req)
	if err != nil {
		err = x.body.Because(err)
		span.Failed(api.CodeOf(err))
		return err
	}
	span.Status(res.Status)
	x.reply = res.Body
	if res.Meta.Retried {
		x.proxy.met.retried.Inc()
	}
	if ctx.IsHead() || res.Status == http.StatusNoContent || res.Status == http.StatusNotModified {
		// Nothing may follow, not even the end of a body in chunks.
		if _, err := io.CopyN(io.Discard, res.Body, maxUnwanted); err != io.EOF {
			return api.Wrap(api.CodeFunctionIO, err, "the reply has a body, where none may be, or did not end")
		}
		x.head(res)
		ctx.Response.SkipBody = true
		x.end(nil)
		return nil
	}
	x.head(res)
	ctx.Response.ImmediateHeaderFlush = true // events may be long in coming
	ctx.SetBodyStream(x, -1)
	return nil
}

// maxUnwanted bounds, in bytes, what is dropped of a body that may not be.
const maxUnwanted = 1 << 20

// admit finds the route, before anything of the body is read.
func (x *exchange) admit() (fn api.FunctionName, path, query string, r *route, err error) {
	ctx := x.ctx
	if err = x.proxy.access.check(ctx); err != nil {
		return
	}
	if !ctx.Request.Header.IsHTTP11() {
		err = api.Invalid("HTTP version", "use a client of HTTP/1.1", "replies have no length known ahead, which HTTP/1.0 cannot tell apart from a broken one")
		return
	}
	if fn, path, query, err = target(string(ctx.Request.Header.RequestURI())); err != nil {
		return
	}
	if len(ctx.Request.Header.Peek(headerCallback)) > 0 {
		err = api.Invalid(headerCallback, "leave it out, and wait for the reply", "the proxy posts no results elsewhere: they are for its caller")
		return
	}
	method := string(ctx.Method())
	for _, r = range x.proxy.routes {
		if !refusedMethod(method) && r.admits(fn, method, path) {
			x.route = r.Name
			return
		}
	}
	err = &api.Error{Code: api.CodeForbidden, Field: "route", Message: "no route of the proxy admits this function, method and path",
		Remedy: "add one to its configuration; docs/proxy.md"}
	return
}

// requestHeader is what the function gets to see. What means this connection, or
// is for this proxy, stays here.
func requestHeader(ctx *fasthttp.RequestCtx) http.Header {
	h := make(http.Header)
	drop := connectionNames(ctx.Request.Header.Peek(fasthttp.HeaderConnection))
	for k, v := range ctx.Request.Header.All() {
		name := strings.ToLower(string(k))
		switch {
		case hop(name), drop[name], name == "host", name == "content-length", name == "expect", name == "x-call-id", strings.HasPrefix(name, "x-faasd-sec-"):
		default:
			h[name] = append(h[name], string(v))
		}
	}
	return h
}

func connectionNames(v []byte) map[string]bool {
	out := make(map[string]bool)
	for name := range strings.SplitSeq(strings.ToLower(string(v)), ",") {
		out[strings.TrimSpace(name)] = true
	}
	return out
}

// hop are the headers that mean a connection (RFC 9110, 7.6.1).
func hop(lower string) bool {
	switch lower {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "proxy-authenticate", "proxy-authorization":
		return true
	}
	return false
}

// head writes the reply's head.
func (x *exchange) head(res *client.Response) {
	ctx := x.ctx
	ctx.SetStatusCode(res.Status)
	for name, values := range res.Header {
		if lower := strings.ToLower(name); hop(lower) || lower == "content-length" || lower == "date" {
			continue // the server has its own
		}
		for _, v := range values {
			ctx.Response.Header.Add(name, v)
		}
	}
	for name, v := range map[string]string{api.HeaderCallID: res.Meta.CallID, api.HeaderServedBy: res.Meta.Node, api.HeaderStart: res.Meta.Start} {
		if v != "" {
			ctx.Response.Header.Set(name, v)
		}
	}
	x.body.Keep(ctx)
}

// Read implements io.Reader for the server.
func (x *exchange) Read(p []byte) (int, error) {
	if !x.started {
		x.started = true
		_ = x.ctx.Conn().SetWriteDeadline(x.until)
	}
	n, err := x.reply.Read(p)
	if err != nil && err != io.EOF {
		x.failed = err
	}
	return n, err
}

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (x *exchange) SupportsBodyWriteTo() bool { return true }

// WriteTo implements io.WriterTo: each piece goes out as soon as it was opened.
func (x *exchange) WriteTo(w io.Writer) (int64, error) {
	n, err := x.body.Copy(w, struct{ io.Reader }{x}, true) // the header is flushed at once
	if err != nil && x.failed == nil {                     // the caller left
		x.failed = api.Wrap(api.CodeCallerGone, err, "the caller did not take the reply")
	}
	x.failed = x.body.Because(x.failed)
	return n, err
}

// Close implements io.Closer: the server calls it when the reply is out, or broken.
func (x *exchange) Close() error {
	x.end(x.failed)
	return nil
}

// end gives back all that the exchange holds, once.
func (x *exchange) end(err error) {
	x.once.Do(func() {
		if x.reply != nil {
			_ = x.reply.Close() // what matters was read or is lost
		}
		if x.cancel != nil {
			x.cancel()
		}
		if x.upload != nil {
			_ = x.upload.Close()
		}
		if x.body != nil {
			x.body.Release()
		}
		x.proxy.met.done(x.route, x.began, err)
		x.proxy.met.inFlight.Dec() // when it is counted: who sees none under way sees all outcomes
	})
}
