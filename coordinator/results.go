package coordinator

import (
	"bytes"
	"context"
	"io"
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/nbio"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// cancelAsync serves DELETE /async-function/CALL-ID. Who sent a sealed call, or
// owns its function, signs for that; of a plain one its id is all there is.
func (c *Coordinator) cancelAsync(ctx *fasthttp.RequestCtx, id string) error {
	if c.async == nil {
		return noAsync()
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	s, err := c.async.Queue.State(sctx, id)
	if err != nil {
		return err
	}
	if s.Waiting == nil {
		return api.Errorf(api.CodeConflict, "call %q has ended already", id)
	}
	if err := c.concernedBy(ctx, s.Waiting.Owner, s.Waiting.Sender); err != nil {
		return err
	}
	if err := c.async.Queue.Cancel(sctx, id); err != nil {
		return err
	}
	c.queue.abandon(id)
	return nil
}

// concernedBy verifies that a sealed call's sender or its function's owner signed
// the request. A plain call has no sender, and its id is a secret of who made it.
func (c *Coordinator) concernedBy(ctx *fasthttp.RequestCtx, owner, sender string) error {
	if sender == "" {
		return nil
	}
	_, err := c.concerned(ctx, func(f sealed.Fingerprint) error {
		if who := f.String(); who != owner && who != sender {
			return api.Errorf(api.CodeForbidden, "only who sent the call or owns its function may do that")
		}
		return nil
	})
	return err
}

// serveResult serves GET and DELETE of /v1/results/CALL-ID.
func (c *Coordinator) serveResult(ctx *fasthttp.RequestCtx, id string) {
	if err := c.giveResult(ctx, id); err != nil {
		ctx.Response.Header.Set(api.HeaderCallID, id)
		c.problem(ctx, err)
	}
}

func (c *Coordinator) giveResult(ctx *fasthttp.RequestCtx, id string) error {
	if c.async == nil {
		return noAsync()
	}
	if !ctx.IsGet() && !ctx.IsDelete() {
		return api.Errorf(api.CodeMethod, "a result is got or deleted")
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	s, err := c.async.Queue.State(sctx, id)
	if err != nil {
		return err
	}
	switch {
	case s.Waiting != nil && ctx.IsGet():
		c.notYet(ctx, s.Waiting)
		return nil
	case s.Dead != nil && ctx.IsGet():
		ctx.Response.Header.Set(api.HeaderState, api.AsyncDead)
		return gaveUp(s.Dead)
	case s.Result == nil:
		return api.Errorf(api.CodeConflict, "call %q has no result", id)
	}
	r := s.Result
	if ctx.IsDelete() || r.Deliver.Once {
		if err := c.concernedBy(ctx, r.Owner, r.Sender); err != nil {
			return err
		}
	}
	if ctx.IsDelete() {
		ctx.SetStatusCode(fasthttp.StatusNoContent)
		return c.async.Queue.Forget(sctx, r)
	}
	if r.Failed != nil {
		return &api.Error{Code: r.Failed.Code, Message: r.Failed.Message}
	}
	p, err := c.payloadOf(sctx, &s)
	if err != nil {
		return err
	}
	if r.Deliver.Events == "" && isEvent(string(ctx.Request.Header.Peek(fasthttp.HeaderAccept))) {
		p.asEvent("structured", eventOf(r.ID, r.Function, eventResult, r.Ended))
	}
	body, err := p.open()
	if err != nil {
		return err
	}
	switch {
	case r.Deliver.Once && r.Body.Blob != "":
		body = &once{ReadCloser: body, left: p.size, forget: func() { c.forgetRead(r) }}
	case r.Deliver.Once:
		if err := c.async.Queue.Forget(sctx, r); err != nil {
			_ = body.Close()
			return err
		}
	}
	ctx.Response.Header.SetNoDefaultContentType(true)
	for name, values := range r.Header {
		for _, v := range values {
			ctx.Response.Header.Add(name, v)
		}
	}
	for name, value := range p.header {
		ctx.Response.Header.Set(name, value)
	}
	ctx.SetBodyStream(nbio.Download(ctx.Conn(), body), int(p.size))
	return nil
}

// once is a stored body that is forgotten as its last bytes are read: before that its
// pieces are still wanted.
type once struct {
	io.ReadCloser
	left   int64
	forget func()
}

// Read implements io.Reader.
func (o *once) Read(p []byte) (int, error) {
	n, err := o.ReadCloser.Read(p)
	if o.left -= int64(n); o.left <= 0 && o.forget != nil {
		o.forget()
		o.forget = nil
	}
	return n, err
}

// forgetRead forgets a result that was read.
func (c *Coordinator) forgetRead(r *queue.Result) {
	ctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	if err := c.async.Queue.Forget(ctx, r); err != nil {
		c.log.Warn("result that was read is not forgotten; it ends by itself", "call", r.ID, "err", err)
	}
}

// gaveUp is a dead letter as an error.
func gaveUp(d *queue.Dead) error {
	e := api.Errorf(d.Failure.Code, "the call was given up after %d attempts: %s", d.Attempts, d.Failure.Message)
	e.Remedy = "the function's owner may replay it: faasd-sec async dead replay " + d.ID
	return e
}

// notYet answers for a call without a result.
func (c *Coordinator) notYet(ctx *fasthttp.RequestCtx, call *queue.Call) {
	state := api.AsyncWaiting
	if call.Running() {
		state = api.AsyncRunning
	}
	ctx.Response.Header.Set(api.HeaderCallID, call.ID)
	ctx.Response.Header.Set(api.HeaderState, state)
	ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "1")
	ctx.SetStatusCode(fasthttp.StatusAccepted)
}

// resultHeader is what is told of a result beside its body.
func resultHeader(r *queue.Result) map[string]string {
	h := map[string]string{
		api.HeaderCallID:         r.ID,
		api.HeaderFunctionName:   r.Function.Short(),
		api.HeaderFunctionStatus: strconv.Itoa(r.Status),
		api.HeaderDuration:       strconv.FormatFloat(r.DurationMs/1000, 'f', 6, 64),
		api.HeaderAttempts:       strconv.Itoa(r.Attempts),
	}
	if r.Node != "" {
		h[api.HeaderServedBy], h[api.HeaderStart] = r.Node, r.Start
	}
	return h
}

// resultBody opens a result's body.
func (c *Coordinator) resultBody(ctx context.Context, r *queue.Result) (io.ReadCloser, error) {
	if r.Body.Blob != "" {
		return c.blob(ctx, r.Body.Blob)
	}
	b, err := c.async.Queue.Reply(ctx, r.ID)
	return io.NopCloser(bytes.NewReader(b)), err
}
