package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/upstream"
)

// gatewayIdle is below the gateway's own idle timeout of two minutes.
const gatewayIdle = time.Minute

// entry is a gateway as invocations use it.
type entry struct {
	url    *url.URL
	direct *upstream.Client // nil where net/http has to do it
}

func (e *entry) close() {
	if e.direct != nil {
		e.direct.Close()
	}
}

// What of a gateway's reply matters, in lower case.
const (
	fieldType     = "content-type"
	fieldCallID   = "x-call-id"
	fieldTrace    = "traceparent"
	fieldServedBy = "x-served-by"
	fieldStart    = "x-faasd-sec-start"
	fieldDuration = "x-duration-seconds"
	fieldStated   = "x-faasd-sec-stated"
	fieldManifest = "x-faasd-sec-manifest" // of a request
)

// newEntry makes the entry for a gateway. Where nothing lies between this
// process and the gateway, plain HTTP, no proxy, no transport of the caller's
// own, invocations go over a client of ours: a warm call costs it a third of
// what net/http's takes.
func newEntry(gateway *url.URL, direct bool) *entry {
	e := &entry{url: gateway}
	if !direct || gateway.Scheme != "http" {
		return e
	}
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: gateway}); err != nil || proxy != nil {
		return e
	}
	addr := gateway.Host
	if gateway.Port() == "" {
		addr = net.JoinHostPort(gateway.Hostname(), "80")
	}
	cfg := upstream.DefaultConfig()
	cfg.Host, cfg.IdleTimeout, cfg.MaxIdle = gateway.Host, gatewayIdle, 128
	cfg.Fields = []string{fieldType, fieldCallID, fieldServedBy, fieldStart, fieldDuration, fieldStated}
	cfg.Dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
	e.direct = upstream.New(cfg)
	return e
}

// answer is a gateway's reply, its body unread.
type answer struct {
	status int
	typ    string // content type
	meta   Meta   // what the headers say
	stated uint64 // sequence of a traffic statement that the gateway tells of; 0 for none
	body   io.ReadCloser
}

// postDirect sends a sealed request and returns with the reply's head.
func (c *Client) postDirect(ctx context.Context, e *entry, name api.FunctionName, callID string, out *outgoing) (*answer, error) {
	req := &upstream.Request{Method: http.MethodPost, Path: api.GatewayPathInvoke + string(name),
		Header: make([]sealed.Field, 1, 2)}
	req.Header[0] = sealed.Field{Name: fieldType, Value: api.ContentTypeSealed}
	if callID != "" {
		req.Header = append(req.Header, sealed.Field{Name: fieldCallID, Value: callID})
	}
	if out.trace != "" {
		req.Header = append(req.Header, sealed.Field{Name: fieldTrace, Value: out.trace})
	}
	if out.manifest != "" {
		req.Header = append(req.Header, sealed.Field{Name: fieldManifest, Value: out.manifest})
	}
	if out.whole != nil {
		req.Small = out.whole
	} else {
		req.Body, req.Length, req.Cancel = out.body, -1, out.abort
	}
	if d, ok := ctx.Deadline(); ok {
		req.Deadline = d
	}
	var stop func() bool
	if ctx.Done() != nil {
		stop = context.AfterFunc(ctx, req.Abort)
	}
	res, err := e.direct.Do(ctx, req)
	if err != nil {
		if stop != nil {
			stop()
		}
		var be *upstream.BodyError
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case errors.As(err, &be):
			return nil, fmt.Errorf("client: read the request's body: %w", be.Err)
		}
		return nil, unreachable(e.url, err)
	}
	a := &answer{status: res.Status, body: &directBody{Response: res, ctx: ctx, stop: stop}}
	var duration string
	for _, f := range res.Header {
		switch f.Name {
		case fieldType:
			a.typ = f.Value
		case fieldCallID:
			a.meta.CallID = f.Value
		case fieldServedBy:
			a.meta.Node = f.Value
		case fieldStart:
			a.meta.Start = f.Value
		case fieldDuration:
			duration = f.Value
		case fieldStated:
			a.stated = statedText(f.Value)
		}
	}
	a.meta.InServer = inServer(duration)
	return a, nil
}

// directBody ends with the context and gives its error.
type directBody struct {
	*upstream.Response
	ctx  context.Context
	stop func() bool // nil for a context that never ends
}

func (b *directBody) Read(p []byte) (int, error) {
	n, err := b.Response.Read(p)
	if err != nil && err != io.EOF && b.ctx.Err() != nil {
		err = b.ctx.Err()
	}
	return n, err
}

func (b *directBody) Close() error {
	if b.stop != nil {
		b.stop()
	}
	return b.Response.Close()
}
