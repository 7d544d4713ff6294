package agent

import (
	"bufio"
	"io"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/upstream"
)

// invokePlain passes one request on to a plain function as it is. What the agent
// answers by itself has a HeaderFunctionErr, which no function's reply has.
func (a *Agent) invokePlain(ctx *fasthttp.RequestCtx) {
	f := a.fn.Load()
	if f == nil {
		refusePlain(ctx, a.notServing())
		return
	}
	if f.b.plain == nil {
		e := api.Errorf(api.CodeMediaType, "%q is a sealed function and takes %s", f.b.name, api.ContentTypeSealed)
		e.Remedy = "seal the request: faasd-sec invoke, or faasd-sec proxy"
		refusePlain(ctx, e)
		return
	}
	if err := f.begin(); err != nil {
		refusePlain(ctx, err)
		return
	}
	inv := &invocation{f: f, ctx: ctx, conn: ctx.Conn(), callID: callID(ctx), deadline: time.Now().Add(f.b.exec)}
	r := &upstream.Request{Method: string(ctx.Method()), Header: plainHeaders(&ctx.Request.Header), Deadline: inv.deadline}
	r.Path, r.Query, _ = strings.Cut(string(ctx.Request.Header.Peek(api.HeaderTarget)), "?")
	if ctx.Request.Header.ConnectionUpgrade() {
		r.Upgrade = string(ctx.Request.Header.Peek(fasthttp.HeaderUpgrade))
	}
	if err := inv.takePlain(r); err != nil {
		inv.release()
		plainProblem(ctx, err)
		ctx.SetConnectionClose()
		return
	}
	inv.watch = time.AfterFunc(time.Hour, inv.checkCaller)
	inv.onAbort(r.Abort)
	inv.watch.Reset(callerCheck)
	resp, err := f.client.Do(a.life, r)
	if err != nil {
		e := inv.explain(err)
		inv.release()
		plainProblem(ctx, e)
		if inv.src != nil {
			ctx.SetConnectionClose()
		}
		return
	}
	inv.replyPlain(resp)
}

// plainHeaders are those of a request that are the function's to see.
func plainHeaders(h *fasthttp.RequestHeader) []sealed.Field {
	out := make([]sealed.Field, 0, h.Len())
	for k, v := range h.All() {
		name := strings.ToLower(string(k))
		if !strings.HasPrefix(name, platformPrefix) {
			out = append(out, sealed.Field{Name: name, Value: string(v)})
		}
	}
	return out
}

// takePlain gives the request its body: a small one whole, a larger one as it comes.
func (inv *invocation) takePlain(r *upstream.Request) error {
	ctx := inv.ctx
	body, size := ctx.RequestBodyStream(), ctx.Request.Header.ContentLength()
	switch {
	case body == nil:
		r.Small = ctx.PostBody()
	case size >= 0 && size <= smallBody:
		// It is not opened, and takes a third of what a sealed one does.
		if !inv.takeInline(int64(size) / 3) {
			drain(ctx.Conn(), body)
			return tooManyBodies()
		}
		if err := ctx.Conn().SetReadDeadline(time.Now().Add(inv.f.b.read)); err != nil {
			return api.Wrap(api.CodeInvalid, err, "the connection broke")
		}
		inv.buf = sealedBuffers.Get().(*[]byte)
		b, err := readAll((*inv.buf)[:0], body, size)
		*inv.buf = b
		if err != nil {
			return readError(err)
		}
		r.Small = b
	default:
		inv.src = &source{conn: ctx.Conn(), r: body, gap: inv.f.b.read}
		r.Body, r.Cancel, r.Length = inv.src, inv.src.close, int64(max(size, -1))
		// Whether it is read to its end is known too late for the next request.
		ctx.SetConnectionClose()
	}
	return nil
}

// replyPlain passes the function's reply on: a small one that is all there with its
// length, another as it comes.
func (inv *invocation) replyPlain(resp *upstream.Response) {
	ctx, h := inv.ctx, &inv.ctx.Response.Header
	ctx.SetStatusCode(resp.Status)
	h.SetNoDefaultContentType(true)
	for _, f := range ownHeaders(resp.Header) {
		h.Add(f.Name, f.Value)
	}
	s := &plainStream{inv: inv, resp: resp}
	switch {
	case resp.Status == fasthttp.StatusSwitchingProtocols:
		upstream.Hijack(ctx, string(ctx.Request.Header.Peek(fasthttp.HeaderUpgrade)), inv.deadline, resp.Switched(), func() { _ = s.Close() })
	case ctx.IsHead():
		if resp.Stated >= 0 {
			h.SetContentLength(int(resp.Stated))
		}
		ctx.Response.SkipBody = true
		_ = s.Close()
	case resp.Length >= 0 && resp.Length <= int64(resp.Buffered()):
		b := make([]byte, resp.Length)
		_, err := io.ReadFull(resp, b)
		_ = s.Close()
		if err != nil { // it was all there a moment ago
			plainProblem(ctx, api.Wrap(api.CodeFunctionIO, err, "the function's reply broke off"))
			return
		}
		ctx.SetBody(b)
		setWriteDeadline(ctx, inv.f.b.write)
	default:
		ctx.Response.ImmediateHeaderFlush = true
		ctx.SetBodyStream(s, int(resp.Length))
		setWriteDeadline(ctx, inv.f.b.write)
	}
}

// plainStream is a reply that is written while it comes.
type plainStream struct {
	inv  *invocation
	resp *upstream.Response
	done bool
}

// Read implements io.Reader, which the server asks for and does not use.
func (s *plainStream) Read(p []byte) (int, error) { return s.resp.Read(p) }

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (s *plainStream) SupportsBodyWriteTo() bool { return true }

// WriteTo writes what comes at once. After an error the reply has no end: nobody
// takes it for whole.
func (s *plainStream) WriteTo(w io.Writer) (int64, error) {
	buf := recordBuffers.Get().(*[]byte)
	defer recordBuffers.Put(buf)
	cw := &deadlineWriter{w: w, conn: s.inv.ctx.Conn(), per: s.inv.f.b.write}
	for {
		n, err := s.resp.Read(*buf)
		if n > 0 {
			_, werr := cw.Write((*buf)[:n])
			if bw, ok := w.(*bufio.Writer); ok && werr == nil { // of a known length: not in chunks, which are flushed
				werr = bw.Flush()
			}
			if werr != nil {
				return cw.n, werr
			}
		}
		if err == io.EOF {
			return cw.n, nil
		}
		if err != nil {
			s.inv.cutShort(err)
			return cw.n, err
		}
	}
}

// Close implements io.Closer.
func (s *plainStream) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	err := s.resp.Close()
	s.inv.release()
	return err
}

// refusePlain answers without having looked at the body.
func refusePlain(ctx *fasthttp.RequestCtx, err error) {
	refuse(ctx, err)
	markOwn(ctx, err)
}

// plainProblem is problem, marked as the platform's.
func plainProblem(ctx *fasthttp.RequestCtx, err error) {
	problem(ctx, err)
	markOwn(ctx, err)
}

func markOwn(ctx *fasthttp.RequestCtx, err error) {
	ctx.Response.Header.Set(api.HeaderFunctionErr, string(api.CodeOf(err)))
}
