package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/nbio"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// inlineSealed is the most, in bytes of ciphertext, that is read at once into a
// pooled buffer: the path of nearly all invocations. A body of 64 KiB is among
// them, with what the envelope puts around it.
const inlineSealed = 64<<10 + 4<<10

// maxCallID bounds the call id that is passed on.
const maxCallID = 128

var sealedBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

// newServer serves the node over the agent's socket. Timeouts of bodies are set
// per invocation from the descriptor; those here bound what comes before one.
func (a *Agent) newServer() *fasthttp.Server {
	return &fasthttp.Server{
		Handler: a.handle, StreamRequestBody: true, MaxRequestBodySize: math.MaxInt, // sizes are bounded where they cost memory
		ReadTimeout: api.DefaultReadTimeout, IdleTimeout: 2 * time.Minute,
		ReadBufferSize:  20 << 10, // a plain request's header, which a gateway takes up to 16 KiB of
		WriteBufferSize: 8 << 10, Concurrency: 2048,
		NoDefaultServerHeader: true, NoDefaultDate: true, NoDefaultContentType: true, DisablePreParseMultipartForm: true,
		SecureErrorLogMessage: true, Logger: discardLogger{}, CloseOnShutdown: true,
	}
}

// discardLogger: what fasthttp would print are bytes of requests.
type discardLogger struct{}

func (discardLogger) Printf(string, ...any) {}

// listen makes the agent's socket anew.
func (a *Agent) listen() (net.Listener, error) {
	path := a.cfg.httpSocket()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return nbio.Listener{Listener: ln}, nil
}

func (a *Agent) handle(ctx *fasthttp.RequestCtx) {
	switch path := string(ctx.Path()); {
	case path == api.AgentPathInvoke && ctx.IsPost():
		a.invoke(ctx)
	case path == api.AgentPathPlain:
		a.invokePlain(ctx)
	case path == api.AgentPathBundle && ctx.IsPut():
		a.putBundle(ctx)
	case path == api.AgentPathInvoke || path == api.AgentPathBundle:
		problem(ctx, api.Errorf(api.CodeMethod, "%s is not served here", ctx.Method()))
	default:
		problem(ctx, api.Errorf(api.CodeNotFound, "no such path"))
	}
}

// problem answers in clear: for what could not be opened, so that there is
// nobody known to seal to.
func problem(ctx *fasthttp.RequestCtx, err error) {
	p := api.ProblemOf(err, callID(ctx))
	b, jsonErr := json.Marshal(p)
	if jsonErr != nil {
		b = nil
	}
	last := ctx.Response.ConnectionClose()
	ctx.Response.Reset()
	if last {
		ctx.SetConnectionClose()
	}
	if unaccepted(p.Code) {
		ctx.Response.Header.Set(api.HeaderUnopened, "1")
	}
	ctx.SetStatusCode(p.Status)
	ctx.SetContentType(api.ContentTypeProblem)
	ctx.SetBody(b)
	setWriteDeadline(ctx, api.DefaultWriteTimeout)
}

// unaccepted reports whether a refusal came before the message was remembered
// as opened: every check before `replay` (docs/envelope.md), and what is refused
// before any.
func unaccepted(c api.Code) bool {
	switch c {
	case api.CodeBusy, api.CodeMediaType, api.CodeMethod,
		api.Code(sealed.CodeFormat), api.Code(sealed.CodeUnknownKey), api.Code(sealed.CodeWrongFunction),
		api.Code(sealed.CodeStaleRevision), api.Code(sealed.CodeWindow), api.Code(sealed.CodeSignature),
		api.Code(sealed.CodeSender), api.Code(sealed.CodeCommitment):
		return true
	}
	return false
}

// A body that is refused is still read for a while: a peer that is writing when
// its connection closes may lose the answer that says why.
const (
	drainBytes = 16 << 20
	drainTime  = time.Second
)

// refuse answers in clear without having looked at the body.
func refuse(ctx *fasthttp.RequestCtx, err error) {
	whole := true
	if body := ctx.RequestBodyStream(); body != nil {
		whole = drain(ctx.Conn(), body)
	}
	problem(ctx, err)
	if !whole {
		ctx.SetConnectionClose()
	}
}

// drain reads a body to its end, within bounds, and reports whether it got there.
func drain(conn net.Conn, body io.Reader) bool {
	if err := conn.SetReadDeadline(time.Now().Add(drainTime)); err != nil {
		return false
	}
	_, err := io.CopyN(io.Discard, body, drainBytes)
	return err == io.EOF
}

// setWriteDeadline bounds the writing of the reply that follows.
func setWriteDeadline(ctx *fasthttp.RequestCtx, d time.Duration) {
	// A connection that takes no deadline is broken; writing will tell.
	_ = ctx.Conn().SetWriteDeadline(time.Now().Add(d))
}

// callID is the invocation's id as the node gave it, "" if it is not one that
// can be passed on.
func callID(ctx *fasthttp.RequestCtx) string {
	b := ctx.Request.Header.Peek(api.HeaderCallID)
	if len(b) > maxCallID {
		return ""
	}
	for _, c := range b {
		if c <= ' ' || c >= 0x7f {
			return ""
		}
	}
	return string(b)
}

// invocation is one request on its way through.
type invocation struct {
	f    *function
	ctx  *fasthttp.RequestCtx
	src  *source // nil when the whole message was read into buf
	buf  *[]byte
	msg  *unseal.Message
	head sealed.RequestHead
	body io.Reader
	held int64 // of the hold budget
	read int64 // of the inline budget
	cut  bool  // the body could not be read to its end

	deadline time.Time // of the function's work
	callID   string
	conn     net.Conn
	watch    *time.Timer
	released atomic.Bool
	gone     atomic.Bool            // nobody waits for the reply any more
	abort    atomic.Pointer[func()] // ends the function's work on it
}

func (a *Agent) invoke(ctx *fasthttp.RequestCtx) {
	f := a.fn.Load()
	if f == nil {
		refuse(ctx, a.notServing())
		return
	}
	if f.b.plain != nil {
		refuse(ctx, api.Errorf(api.CodeMediaType, "this is a plain function: it opens no sealed message"))
		return
	}
	if string(ctx.Request.Header.ContentType()) != api.ContentTypeSealed {
		refuse(ctx, api.Errorf(api.CodeMediaType, "an invocation is a sealed message, content type %s", api.ContentTypeSealed))
		return
	}
	if err := f.begin(); err != nil {
		refuse(ctx, err)
		return
	}
	inv := &invocation{f: f, ctx: ctx, conn: ctx.Conn(), callID: callID(ctx)}
	if err := inv.open(); err != nil {
		whole := !inv.cut
		if inv.src != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			whole = drain(ctx.Conn(), inv.src.r)
		}
		inv.release()
		problem(ctx, err)
		if !whole {
			ctx.SetConnectionClose()
		}
		return
	}
	inv.deadline = time.Now().Add(f.b.exec)
	inv.run(a.life)
}

// open reads and opens the request as far as its flags allow.
func (inv *invocation) open() error {
	f, ctx := inv.f, inv.ctx
	var r io.Reader
	size := ctx.Request.Header.ContentLength()
	body := ctx.RequestBodyStream()
	if body == nil {
		r = bytes.NewReader(ctx.PostBody())
	} else {
		if err := ctx.Conn().SetReadDeadline(time.Now().Add(f.b.read)); err != nil {
			return api.Wrap(api.CodeInvalid, err, "the connection broke")
		}
		if size >= 0 && size <= inlineSealed {
			if !inv.takeInline(int64(size)) {
				inv.cut = !drain(ctx.Conn(), body)
				return tooManyBodies()
			}
			inv.buf = sealedBuffers.Get().(*[]byte)
			b, err := readAll((*inv.buf)[:0], body, size)
			*inv.buf = b
			if err != nil {
				inv.cut = true
				return readError(err)
			}
			r = bytes.NewReader(b)
		} else {
			inv.src = &source{conn: ctx.Conn(), r: body, gap: 0}
			r = inv.src
		}
	}
	if f.looked != nil {
		<-f.looked // at work since before the function was ready, or done
	}
	msg, err := f.opener.Open(r, f.expect())
	if err != nil {
		return readError(err)
	}
	inv.msg = msg
	if inv.early() {
		if inv.src != nil {
			inv.src.stream(f.b.read)
			// Whether the body was read to its end is known only after the
			// reply's header is out, so this connection serves no other request.
			ctx.SetConnectionClose()
		}
	} else if inv.src != nil {
		// What waits decrypted counts against what the sandbox lends for that.
		inv.held = unseal.HoldLimit
		if size >= 0 {
			inv.held = min(inv.held, int64(size))
		}
		if !f.hold.take(inv.held) {
			inv.held = 0
			return api.Errorf(api.CodeBusy, "too many large requests wait in this sandbox; retry later")
		}
	}
	if inv.body, err = msg.Body(func() (io.ReadWriteSeeker, error) { return newSpool(f.spools) }); err != nil {
		return readError(err)
	}
	if inv.head, err = msg.RequestHead(); err != nil {
		return readError(err)
	}
	return nil
}

// takeInline reserves n bytes for a body that is read whole at once.
func (inv *invocation) takeInline(n int64) bool {
	if !inv.f.inline.take(n) {
		return false
	}
	inv.read = n
	return true
}

func tooManyBodies() error {
	return api.Errorf(api.CodeBusy, "too many requests with bodies of this size are under way in this sandbox; retry later")
}

// early reports whether input may reach the function before its end was seen.
func (inv *invocation) early() bool { return inv.msg.Header.Flags&sealed.FlagEarlyInput != 0 }

// readAll reads a body of size bytes.
func readAll(dst []byte, r io.Reader, size int) ([]byte, error) {
	if cap(dst) < size {
		dst = make([]byte, 0, size)
	}
	n, err := io.ReadFull(r, dst[:size])
	return dst[:n], err
}

// readError turns what stopped the opening into what the caller is told: the
// envelope's own code where it has one.
func readError(err error) error {
	var refusal *sealed.Error
	var ours *api.Error
	switch {
	case errors.As(err, &refusal):
		e := api.Wrap(api.Code(refusal.Code), err, refusal.Detail)
		if refusal.Code == sealed.CodeStaleRevision {
			e.Remedy = "fetch the function's descriptor again and seal anew"
		}
		return e
	case errors.As(err, &ours):
		return ours
	case errors.Is(err, unseal.ErrTooLong):
		return api.Wrap(api.CodeTooLarge, err, "the body is too large to be held")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return api.Wrap(api.CodeDeadline, err, "the request came too slowly")
	}
	return api.Wrap(api.CodeInvalid, err, "the request's body ended early")
}

// release ends the invocation's hold on everything. It is called once, when
// nothing of the request is needed any more.
func (inv *invocation) release() {
	if inv.src != nil {
		inv.src.close()
	}
	if inv.watch != nil {
		inv.released.Store(true)
		inv.watch.Stop()
	}
	if inv.msg != nil {
		inv.msg.Close()
	}
	if inv.buf != nil {
		*inv.buf = (*inv.buf)[:0] // ciphertext: nothing to wipe
		sealedBuffers.Put(inv.buf)
		inv.buf = nil
	}
	if inv.held > 0 {
		inv.f.hold.give(inv.held)
		inv.held = 0
	}
	if inv.read > 0 {
		inv.f.inline.give(inv.read)
		inv.read = 0
	}
	inv.f.end()
}

// run hands the request to the function and prepares the reply.
func (inv *invocation) run(life context.Context) {
	inv.addCallID()
	inv.watch = time.AfterFunc(time.Hour, inv.checkCaller)
	inv.watch.Reset(callerCheck) // only now: the check uses inv.watch
	if !inv.f.primed.Swap(true) {
		go inv.f.prime(inv.msg.Grant.ReplyKey)
	}
	var result outcome
	if inv.f.b.hosts() {
		result = inv.viaHTTP(life)
	} else {
		result = inv.viaProcess(life)
	}
	inv.reply(result)
}

// addCallID gives the function the id under which the platform knows the call,
// unless the caller sealed one of its own.
func (inv *invocation) addCallID() {
	if inv.callID == "" {
		return
	}
	for _, h := range inv.head.Header {
		if h.Name == "x-call-id" {
			return
		}
	}
	inv.head.Header = append(inv.head.Header, sealed.Field{Name: "x-call-id", Value: inv.callID})
}
