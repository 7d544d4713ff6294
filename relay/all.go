package relay

import (
	"io"
	"slices"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/upstream"
)

// SendAll is SendTo of a reply to a Request with All: with all its headers, but
// those that keep, which is given their names in lower case, does not want, and
// those that mean one connection. A reply with status 101 takes ctx's connection
// over: what comes on either side goes to the other as it comes, until one of them
// ends or the exchange's time is over. Trailers are dropped.
func (r *Reply) SendAll(ctx *fasthttp.RequestCtx, done func(error), keep func(name string) bool) error {
	head := func() {
		h := &ctx.Response.Header
		h.SetNoDefaultContentType(true)
		r.each(func(name, value string) {
			if keep(name) && !connectionHeader(name) {
				h.Add(name, value)
			}
		})
	}
	if r.Status == fasthttp.StatusSwitchingProtocols {
		sw, ok := r.body.(interface{ Switched() io.ReadWriter })
		if ok && r.upgrade != "" {
			r.takeOver(ctx, sw.Switched(), done, head)
			return nil
		}
	}
	if ctx.IsHead() && r.stated >= 0 {
		return r.send(ctx, done, func() {
			head()
			ctx.Response.Header.SetContentLength(int(r.stated))
			ctx.Response.SkipBody = true
		})
	}
	err := r.send(ctx, done, head)
	if err == nil && ctx.Response.IsBodyStream() {
		ctx.Response.ImmediateHeaderFlush = true // the body may be long in coming
	}
	return err
}

// each visits the reply's headers, names in lower case.
func (r *Reply) each(f func(name, value string)) {
	for _, h := range r.small {
		f(h.Name, h.Value)
	}
	for name, values := range r.large {
		name = strings.ToLower(name)
		for _, v := range values {
			f(name, v)
		}
	}
}

// connectionHeader reports whether a header is this hop's own. The date is the
// server's that answers.
func connectionHeader(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "date":
		return true
	}
	return false
}

// takeOver makes the two connections one.
func (r *Reply) takeOver(ctx *fasthttp.RequestCtx, to io.ReadWriter, done func(error), head func()) {
	r.req.unwatch() // whoever ends first ends both
	ctx.SetStatusCode(r.Status)
	head()
	s := &replyStream{Reply: r, ctx: ctx, done: done}
	upstream.Hijack(ctx, r.upgrade, r.until, to, func() { _ = s.Close() })
}

// Headers are those of ctx's request that are for the peer: those that keep, which
// is given their names in lower case, wants, and that do not mean one connection, as
// its own header Connection may say of any (RFC 9110, 7.6.1). A name that is none,
// with a space in it, is left out.
func Headers(ctx *fasthttp.RequestCtx, keep func(name string) bool) []Header {
	h := &ctx.Request.Header
	var hop []string
	for _, v := range h.PeekAll(fasthttp.HeaderConnection) {
		for name := range strings.SplitSeq(strings.ToLower(string(v)), ",") {
			hop = append(hop, strings.TrimSpace(name))
		}
	}
	out := make([]Header, 0, h.Len()+4)
	for k, v := range h.All() {
		name := strings.ToLower(string(k))
		if keep(name) && !connectionHeader(name) && name != "host" && name != "expect" && !slices.Contains(hop, name) && !strings.Contains(name, " ") {
			out = append(out, Header{Name: name, Value: string(v)})
		}
	}
	return out
}
