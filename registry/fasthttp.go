package registry

import (
	"bytes"
	"io"
	"net/http"
	"net/url"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/nbio"
)

// maxDrain is how much of a refused body is read so that the client gets to
// see why, before the connection is closed.
const maxDrain = 256 << 10

// ServeFastHTTP serves everything under /v2/ from a fasthttp server. The
// server should run with StreamRequestBody, so that uploads are not gathered
// in memory, and with a MaxRequestBodySize that its other handlers need, as a
// streamed body is bounded by the registry's own limits. Its timeouts do not bound
// blobs, which may take longer the larger they are.
//
// fasthttp's own adaptor is of no use here: it gathers every answer in memory.
func (r *Registry) ServeFastHTTP(ctx *fasthttp.RequestCtx) {
	req, err := toRequest(ctx)
	if err != nil {
		ctx.Error("bad request", http.StatusBadRequest)
		ctx.SetConnectionClose()
		return
	}
	resp := r.handle(req)
	if req.ContentLength != 0 {
		// What was not read of a body would be taken for the next request.
		n, err := io.CopyN(io.Discard, req.Body, maxDrain)
		if err != io.EOF || n == maxDrain {
			ctx.SetConnectionClose()
		}
	}
	ctx.SetStatusCode(resp.status)
	for k, vs := range resp.header {
		for _, v := range vs {
			ctx.Response.Header.Add(k, v)
		}
	}
	switch {
	case req.Method == http.MethodHead:
		if resp.body != nil {
			resp.body.Close()
		}
		ctx.Response.SkipBody = true
		ctx.Response.Header.SetContentLength(int(resp.length))
	case resp.body != nil:
		ctx.Response.SetBodyStream(nbio.Download(ctx.Conn(), resp.body), int(resp.length)) // closes it, too
	}
}

// toRequest makes a net/http request whose strings do not alias fasthttp's
// buffers. Its body is valid until the handler returns.
func toRequest(ctx *fasthttp.RequestCtx) (*http.Request, error) {
	target := string(ctx.RequestURI())
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, err
	}
	req := &http.Request{
		Method: string(ctx.Method()), URL: u, RequestURI: target, Host: string(ctx.Host()),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{},
		RemoteAddr: ctx.RemoteAddr().String(), TLS: ctx.TLSConnectionState(),
		ContentLength: int64(ctx.Request.Header.ContentLength()), Body: http.NoBody,
	}
	for k, v := range ctx.Request.Header.All() {
		req.Header.Add(string(k), string(v))
	}
	switch {
	case req.ContentLength < -1: // fasthttp's word for a request without a body
		req.ContentLength = 0
	case req.ContentLength == 0:
	case ctx.Request.IsBodyStream():
		req.Body = io.NopCloser(nbio.Upload(ctx.Conn(), ctx.RequestBodyStream()))
	default:
		req.Body = io.NopCloser(bytes.NewReader(ctx.PostBody()))
	}
	return req.WithContext(ctx), nil
}
