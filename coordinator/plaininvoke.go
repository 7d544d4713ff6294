package coordinator

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/relay"
)

// plainCall is what an invocation of a plain function is beside its body.
type plainCall struct {
	method, upgrade string
	headers         []relay.Header
}

// plainTarget splits a request's own target below GatewayPathInvoke, as it was
// sent, into the function's name and the path and query that are the function's.
// The name is "" where the target does not begin so.
func plainTarget(uri []byte) (name, target string) {
	uri, _, _ = bytes.Cut(uri, []byte("#"))
	if len(uri) > 0 && uri[0] != '/' { // a proxy's form, with scheme and host
		_, uri, _ = bytes.Cut(uri, []byte("://"))
		uri = uri[max(bytes.IndexByte(uri, '/'), 0):]
	}
	rest, ok := bytes.CutPrefix(bytes.TrimLeft(uri, "/"), []byte(api.GatewayPathInvoke[1:]))
	if !ok {
		return "", ""
	}
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		return string(rest), "/"
	}
	name, target = string(rest[:end]), escaped(rest[end:])
	if target[0] == '?' {
		target = "/" + target
	}
	return name, target
}

// escaped is a target with what is not ASCII escaped, as browsers send it. Other
// clients send it as it is, and that no request line may have.
func escaped(target []byte) string {
	out := make([]byte, 0, len(target))
	for _, c := range target {
		if c < 0x7f {
			out = append(out, c)
		} else {
			out = fmt.Appendf(out, "%%%02X", c)
		}
	}
	return string(out)
}

// serveUnsealed takes an invocation that is not sealed, and reports whether it was
// one for it to take or refuse. The others are serve's. path is what follows
// GatewayPathInvoke in the request's path as proxies read it: decoded, and without
// dots. A request that names another function by that than by its target as it was
// sent is refused, since who let it pass meant the first.
func (c *Coordinator) serveUnsealed(ctx *fasthttp.RequestCtx, path string) bool {
	if string(ctx.Request.Header.ContentType()) == api.ContentTypeSealed {
		return false
	}
	name, target := plainTarget(ctx.Request.Header.RequestURI())
	if first, _, _ := strings.Cut(path, "/"); first != name {
		gate.CallID(ctx)
		c.plainFailed(ctx, gate.Unread(ctx, api.Invalid("path", "write "+api.GatewayPathInvoke+"NAME as it is, and no .. that leads out of it", "it names one function as it was sent, and another once it is decoded")))
		return true
	}
	fn, err := api.ParseFunctionName(name)
	if err != nil {
		return false
	}
	// A server in front of this one may have admitted the request by another reading.
	if at, _ := plainTarget(ctx.Path()); at != name {
		gate.CallID(ctx)
		c.plainFailed(ctx, gate.Unread(ctx, api.Invalid("path", "leave no .. behind a function's name that leads out of it", "with the .. in it the path is another function's")))
		return true
	}
	r, err := c.routeOf(fn)
	switch {
	case err != nil:
		gate.CallID(ctx)
		c.plainFailed(ctx, gate.Unread(ctx, err))
	case r.plain != nil:
		c.servePlain(ctx, r, target)
	case target != "/":
		gate.CallID(ctx)
		c.plainFailed(ctx, gate.Unread(ctx, gate.NotSealed(fn)))
	default:
		return false
	}
	return true
}

// servePlain takes one invocation of a plain function.
func (c *Coordinator) servePlain(ctx *fasthttp.RequestCtx, r *route, target string) {
	began := time.Now()
	id := gate.CallID(ctx)
	r = r.share(id)
	start := strconv.FormatInt(began.UnixNano(), 10)
	ctx.Response.Header.Set(api.HeaderStartTime, start)
	if !plainMethod(ctx) {
		ctx.Response.Header.Set(fasthttp.HeaderAllow, plainMethods)
		c.plainFailed(ctx, gate.Unread(ctx, api.Errorf(api.CodeMethod, "%s is not passed on to functions", ctx.Method())))
		return
	}
	events, release, err := c.plainEvent(ctx, r)
	defer release()
	if err != nil {
		c.plainFailed(ctx, err)
		return
	}
	body, err := relay.ReadBody(ctx, max(c.cfg.MaxBody, 0))
	if err != nil {
		c.plainFailed(ctx, err)
		return
	}
	body.Watch(ctx, &c.callers)
	t := task{c: c, r: r, name: id, known: r.unbound, call: &plainCall{method: string(ctx.Method()), headers: forwarded(ctx, target, id, start)}}
	if events == "structured" {
		t.call.headers = encodings(t.call.headers)
	}
	if body.Small && ctx.Request.Header.ConnectionUpgrade() {
		t.call.upgrade = string(ctx.Request.Header.Peek(fasthttp.HeaderUpgrade))
	}
	r.calls.Add(1)
	reply, p, err := c.place(&t, body, id, began.Add(r.bound+c.cfg.QueueTimeout))
	if err != nil {
		body.Release()
		err = notStarted(err)
		c.met.Done(began, api.CodeOf(err))
		c.platformError(ctx, err)
		return
	}
	gate.SetDuration(ctx, began)
	own := reply.Header(api.HeaderFunctionErr)
	served, how := reply.Header(api.HeaderServedBy), reply.Header(api.HeaderStart)
	finished := func(err error) {
		p.inFlight.Add(-1)
		if err == nil {
			r.freed.put(p, time.Now())
		}
		c.queue.ended(r.name)
		c.queue.signal()
		code := gate.OK
		switch {
		case err != nil:
			code = gate.Broke(err, api.CodeNodeLost)
		case own != "":
			code = api.Code(own)
		}
		c.met.Done(began, code)
	}
	status := reply.Status
	if events == "structured" && own == "" {
		err = c.sendEvent(ctx, reply, id, r.name)
		finished(err)
	} else {
		err = reply.SendAll(ctx, finished, functionsOwn)
	}
	switch {
	case api.CodeOf(err) == api.CodeTooLarge, api.CodeOf(err) == api.CodeFunctionFailed, api.CodeOf(err) == api.CodeBusy:
		c.platformError(ctx, err)
		return
	case err != nil:
		c.platformError(ctx, api.Wrap(api.CodeNodeLost, err, "the connection to node "+p.id+" broke within its reply"))
		return
	case ctx.Response.IsBodyStream():
		c.readNews() // it may flow for long
	}
	if events == "binary" && own == "" {
		binaryEvent(ctx, status, id, r.name)
	}
	h := &ctx.Response.Header
	h.Set(api.HeaderServedBy, served)
	h.Set(api.HeaderStart, how)
	if own != "" {
		h.Set(api.HeaderInternal, internalMark)
		if code := api.Code(own); code == api.CodeBusy || code == api.CodeNoRoom {
			h.Set(fasthttp.HeaderRetryAfter, "1")
		}
	}
}

// notStarted gives what a sandbox failed with before it took the call a status by
// which the caller is told that nobody answers there: with that of its code a secret
// that is gone would look like a function that is, and a function that ends at once
// like one that ended within the call.
func notStarted(err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case api.CodeFunctionCrashed, api.CodeOOMKilled, api.CodeNotFound, api.CodeKeyRefused:
		return &api.Error{Code: api.CodeStartFailed, Message: "the function does not start: " + e.Message, Field: e.Field, Remedy: e.Remedy, Err: err}
	}
	return err
}

// internalMark is the value of HeaderInternal: who speaks.
const internalMark = "faasd-sec"

const plainMethods = "GET, POST, PUT, PATCH, DELETE, OPTIONS, HEAD"

// plainMethod reports whether functions are given requests with the method.
func plainMethod(ctx *fasthttp.RequestCtx) bool {
	m := string(ctx.Method())
	return m != "" && strings.Contains(", "+plainMethods+",", ", "+m+",")
}

// platformError answers for the platform, and says that it is not the function.
func (c *Coordinator) platformError(ctx *fasthttp.RequestCtx, err error) {
	c.problem(ctx, err)
	ctx.Response.Header.Set(api.HeaderInternal, internalMark)
}

// plainFailed is platformError for what was not let in.
func (c *Coordinator) plainFailed(ctx *fasthttp.RequestCtx, err error) {
	c.met.Refused(api.CodeOf(err))
	c.platformError(ctx, err)
}

// forwarded are the headers that the function gets: the caller's, but for those of
// the platform, and how the call came.
func forwarded(ctx *fasthttp.RequestCtx, target, id, start string) []relay.Header {
	h := &ctx.Request.Header
	host, from := string(h.Peek(api.HeaderForwardedHost)), ctx.RemoteIP().String()
	if host == "" {
		host = string(h.Host())
	}
	if before := h.Peek(fasthttp.HeaderXForwardedFor); len(before) > 0 {
		from = string(before) + ", " + from
	}
	own := relay.Headers(ctx, func(name string) bool {
		switch name {
		case "x-call-id", "x-start-time", "x-forwarded-host", "x-forwarded-for":
			return false
		}
		return !strings.HasPrefix(name, "x-faasd-sec-")
	})
	return append(own, relay.Header{Name: api.HeaderTarget, Value: target}, relay.Header{Name: api.HeaderCallID, Value: id},
		relay.Header{Name: api.HeaderStartTime, Value: start}, relay.Header{Name: api.HeaderForwardedHost, Value: host},
		relay.Header{Name: fasthttp.HeaderXForwardedFor, Value: from})
}

// functionsOwn reports whether a header of a node's reply is the function's to send.
func functionsOwn(name string) bool {
	switch name {
	case "x-call-id", "x-start-time", "x-duration-seconds", "x-served-by", "x-openfaas-internal":
		return false
	}
	return !strings.HasPrefix(name, "x-faasd-sec-")
}
