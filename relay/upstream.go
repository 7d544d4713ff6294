package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/nbio"
	"github.com/faasd-sec/faasd-sec/upstream"
)

// ErrNotSent means that the upstream could not be reached: no byte of the
// request left, and it may safely go elsewhere.
var ErrNotSent = errors.New("relay: upstream not reached")

// Upstream is one peer and its kept-alive connections. It is safe for
// concurrent use. Close ends idle connections.
type Upstream struct {
	life  context.Context
	small *upstream.Client
	large *http.Transport

	places   chan struct{} // one for each exchange of small
	patience time.Duration // of who waits for one
}

// maxReplyHeader bounds the header of a reply to a small body, in bytes.
const maxReplyHeader = 16 << 10

// Dialer opens a connection to the peer, TLS handshake included.
type Dialer func(ctx context.Context) (net.Conn, error)

// Options of an Upstream.
type Options struct {
	MaxConns    int           // for small bodies; more wait for a free one
	IdleTimeout time.Duration // shorter than the peer's, so that a kept connection is not closed under a request
	DialTimeout time.Duration
	// First returns a connection that was opened ahead (OpenAhead), or nil, and
	// gives it away. It is asked before each dial for a small body; one that broke
	// meanwhile is closed, and the peer dialled.
	First  func() net.Conn
	Fields []string // names, in lower case, of the headers of a reply to a small body that are of interest
}

// DefaultOptions fit one peer of a coordinator or node.
func DefaultOptions() Options {
	return Options{MaxConns: 1024, IdleTimeout: 30 * time.Second, DialTimeout: 3 * time.Second, Fields: []string{
		"content-type", strings.ToLower(api.HeaderServedBy), strings.ToLower(api.HeaderStart), strings.ToLower(api.HeaderLoad),
		strings.ToLower(api.HeaderRefused), strings.ToLower(api.HeaderUnopened)}}
}

// NewUpstream makes an Upstream over dial. When ctx ends, so does every
// exchange under way: pass a context that outlives the daemon's drain.
func NewUpstream(ctx context.Context, dial Dialer, o Options) *Upstream {
	small := upstream.DefaultConfig()
	small.Host, small.Fields, small.Inline = "peer", o.Fields, SmallBody
	small.MaxIdle, small.IdleTimeout, small.Sweep = o.MaxConns, o.IdleTimeout, true
	small.DialTimeout, small.MaxHeader = o.DialTimeout, maxReplyHeader
	small.Dial = func(c context.Context) (net.Conn, error) {
		if conn := o.first(); conn != nil {
			return wholeConn{conn}, nil
		}
		conn, err := dial(c)
		if err != nil {
			return nil, err
		}
		return wholeConn{nbio.Wrap(conn)}, nil
	}
	return &Upstream{
		life:     ctx,
		small:    upstream.New(small),
		places:   make(chan struct{}, o.MaxConns),
		patience: o.DialTimeout,
		large: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, cancel := context.WithTimeout(ctx, o.DialTimeout)
				defer cancel()
				conn, err := dial(c)
				if err != nil {
					return nil, &dialError{err}
				}
				return hearingConn{nbio.Wrap(conn)}, nil
			},
			MaxIdleConnsPerHost: 16, IdleConnTimeout: o.IdleTimeout, DisableCompression: true,
			WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
		},
	}
}

// wholeConn is a connection whose end never comes in place: a reply without a
// length would look whole wherever it was cut. Our peers always say where a body
// ends.
type wholeConn struct{ net.Conn }

// Read implements net.Conn.
func (c wholeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// hearingConn is a connection whose peer may answer and leave while a body is
// still sent to it: what is written then goes nowhere, so that the answer, which
// says why, is read. Without this net/http gives up at the first failed write.
type hearingConn struct{ net.Conn }

// Write implements net.Conn.
func (c hearingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return len(p), nil // reading ends at once, with the answer or an error
	}
	return n, err
}

// dialError marks what failed before anything was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// Close closes idle connections.
func (u *Upstream) Close() {
	u.small.CloseIdle()
	u.large.CloseIdleConnections()
}

// Header is one header to send.
type Header struct {
	Name, Value string
	Wipe        bool // Value is not to stay in memory here once it is sent; with small bodies only
}

// Reply is an upstream's answer, its body unread. Exactly one of SendTo and
// Discard must be called.
type Reply struct {
	Status int
	length int64
	stated int64 // in its header
	body   io.ReadCloser
	small  []upstream.Field // the header of a small exchange
	large  http.Header      // of a large one
	free   func()
	until  time.Time
	req    *Body
	once   sync.Once

	upgrade string // what was asked for
}

// Header is a header of the reply, "" if absent or, of a reply to a small body,
// not among Options.Fields.
func (r *Reply) Header(name string) string {
	for _, f := range r.small {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	if r.large == nil {
		return ""
	}
	return r.large.Get(name)
}

// Post sends body to path and returns as soon as the reply's header is there.
// until bounds the whole exchange, the reply's body included. On ErrNotSent,
// body is untouched and may be posted elsewhere; after any other outcome it may not.
func (u *Upstream) Post(until time.Time, path string, body *Body, headers ...Header) (*Reply, error) {
	return u.PostThen(until, path, body, nil, headers...)
}

// PostThen is Post that calls sent, which may be nil, as soon as a small body is
// on its way, or a large one begins: what need not come before the message can be
// done while the peer is at work. After an error sent may not have been called.
func (u *Upstream) PostThen(until time.Time, path string, body *Body, sent func(), headers ...Header) (*Reply, error) {
	return u.Do(until, Request{Method: http.MethodPost, Path: path, Headers: headers, Sent: sent}, body)
}

// Request is what an exchange sends beside its body.
type Request struct {
	Method  string
	Path    string // with its query
	Headers []Header
	Sent    func() // as for PostThen
	Upgrade string // the protocol to go over to, with a small body; empty for none
	All     bool   // keep all headers of the reply, whatever Options.Fields

	// Within ends the exchange when it ends, the reply's body included; nil: only
	// until does. It ends no later than the Upstream's own context.
	Within context.Context
}

// Do is PostThen of any method.
func (u *Upstream) Do(until time.Time, r Request, body *Body) (*Reply, error) {
	if time.Until(until) <= 0 {
		return nil, fmt.Errorf("post %s: %w", r.Path, context.DeadlineExceeded)
	}
	if body.Small {
		return u.doSmall(until, &r, body)
	}
	if r.Sent != nil {
		r.Sent()
	}
	return u.doLarge(until, &r, body)
}

func (u *Upstream) doSmall(until time.Time, r *Request, body *Body) (*Reply, error) {
	path, headers := r.Path, r.Headers
	if err := u.enter(until); err != nil {
		return nil, fmt.Errorf("post %s: %w", path, err)
	}
	req := &upstream.Request{Method: r.Method, Small: body.Head, Deadline: until, Sent: r.Sent, Upgrade: r.Upgrade, All: r.All, Once: true,
		Header: make([]upstream.Field, len(headers))}
	req.Path, req.Query, _ = strings.Cut(path, "?")
	for i, h := range headers {
		req.Header[i] = upstream.Field{Name: h.Name, Value: h.Value}
		req.Wipe = req.Wipe || h.Wipe
	}
	life, free := u.life, u.leave
	if r.Within != nil {
		stop := context.AfterFunc(r.Within, req.Abort)
		life, free = r.Within, func() { stop(); u.leave() }
	}
	body.whenGone(req)
	resp, err := u.small.Do(life, req)
	if err != nil {
		body.whenGone(nil)
		free()
		return nil, body.Because(classify(err))
	}
	return &Reply{Status: resp.Status, length: resp.Length, stated: resp.Stated, until: until, body: resp, small: resp.Header, free: free, req: body,
		upgrade: r.Upgrade}, nil
}

// enter takes a place for an exchange, waiting for one where all are taken.
func (u *Upstream) enter(until time.Time) error {
	select {
	case u.places <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(min(u.patience, time.Until(until)))
	defer t.Stop()
	select {
	case u.places <- struct{}{}:
		return nil
	case <-t.C:
		return fmt.Errorf("%w: all connections are in use", ErrNotSent)
	}
}

func (u *Upstream) leave() { <-u.places }

func (u *Upstream) doLarge(until time.Time, r *Request, body *Body) (*Reply, error) {
	path := r.Path
	life := u.life
	if r.Within != nil {
		life = r.Within
	}
	ctx, cancel := context.WithDeadline(life, until)
	src := &largeBody{head: body.Head, rest: body.tail()}
	req, err := http.NewRequestWithContext(ctx, r.Method, "http://peer"+path, src)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("post %s: %w", path, err)
	}
	req.ContentLength = body.size
	if r.All {
		req.Header["User-Agent"] = nil // net/http sends one of its own otherwise
	}
	for _, h := range r.Headers {
		req.Header.Add(h.Name, h.Value)
	}
	// A deadline on the caller's connection, so that a stalled upload ends.
	if body.rest != nil {
		_ = body.rest.ctx.Conn().SetReadDeadline(until)
	}
	body.whenGone(abortFunc(cancel))
	resp, err := u.large.RoundTrip(req)
	if err != nil {
		body.whenGone(nil)
		cancel()
		if touched := src.detach(); touched { // some of the body may be gone
			return nil, body.Because(timedOut(fmt.Errorf("post %s: %w", path, err)))
		}
		return nil, body.Because(classify(err))
	}
	return &Reply{
		Status: resp.StatusCode, length: resp.ContentLength, stated: resp.ContentLength, until: until,
		body: resp.Body, large: resp.Header, free: func() { cancel(); src.detach() }, req: body,
	}, nil
}

// largeBody is what net/http reads the request from, in a goroutine that may go
// on for a moment after the peer has answered. detach ends its use of the
// Body's buffer, which another request gets next.
type largeBody struct {
	mu      sync.Mutex
	head    []byte
	touched bool
	closed  bool
	rest    io.Reader
}

func (b *largeBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return 0, io.ErrClosedPipe
	}
	b.touched = true
	if len(b.head) > 0 {
		n := copy(p, b.head)
		b.head = b.head[n:]
		b.mu.Unlock()
		return n, nil
	}
	b.mu.Unlock()
	return b.rest.Read(p) // may wait; Body.Release ends it
}

// Close implements io.Closer for net/http.
func (b *largeBody) Close() error { b.detach(); return nil }

// detach reports whether anything was read.
func (b *largeBody) detach() (touched bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed, b.head = true, nil
	return b.touched
}

// classify marks errors that happened before anything was sent.
func classify(err error) error {
	var bad *upstream.BodyError
	if errors.As(err, &bad) { // the body is whole: it is the request's head that no peer is to get
		return &api.Error{Code: api.CodeInvalid, Field: "headers", Err: err, Message: "the request cannot be passed on: " + bad.Err.Error(),
			Remedy: "send it as HTTP/1.1 has it"}
	}
	var d *dialError
	if errors.As(err, &d) || errors.Is(err, upstream.ErrDial) {
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	return timedOut(err)
}

// timedOut gives all forms of a deadline's end one that callers test for.
func timedOut(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

// Discard drops a reply whose body is not wanted. The connection is kept where
// the body was short.
func (r *Reply) Discard() {
	r.once.Do(func() {
		r.req.whenGone(nil) // of another exchange with the same body, perhaps
		_, _ = io.CopyN(io.Discard, r.body, 16<<10)
		_ = r.body.Close()
		r.free()
	})
}

// Bytes reads a short body, at most n bytes, and ends the reply.
func (r *Reply) Bytes(n int64) ([]byte, error) {
	defer r.Discard()
	return io.ReadAll(io.LimitReader(r.body, n))
}

// SendTo makes r the reply of ctx: its status, the named headers and its body,
// which flows while the server writes; a small one is taken whole first. done,
// which may be nil, is called once when the exchange is over, with what broke it
// off. The request's Body is released by then. An error means that a small
// reply broke off: ctx is untouched, and done has been called with it.
func (r *Reply) SendTo(ctx *fasthttp.RequestCtx, done func(error), headers ...string) error {
	return r.send(ctx, done, func() {
		if ct := r.Header(fasthttp.HeaderContentType); ct != "" {
			ctx.Response.Header.SetContentType(ct)
		}
		for _, h := range headers {
			if v := r.Header(h); v != "" {
				ctx.Response.Header.Set(h, v)
			}
		}
	})
}

// send is SendTo, with the headers set by head once the reply is sure.
func (r *Reply) send(ctx *fasthttp.RequestCtx, done func(error), head func()) error {
	s := &replyStream{Reply: r, ctx: ctx, done: done}
	var whole []byte
	if r.length >= 0 && r.length <= SmallBody {
		buf := buffers.Get().(*[]byte)
		defer func() { *buf = (*buf)[:0]; buffers.Put(buf) }()
		*buf = slices.Grow((*buf)[:0], int(r.length))[:r.length]
		if _, err := io.ReadFull(r.body, *buf); err != nil {
			s.err = err
			_ = s.Close() // s.err says more
			return err
		}
		whole = *buf
	}
	ctx.SetStatusCode(r.Status)
	head()
	r.req.Keep(ctx)
	if whole == nil {
		ctx.SetBodyStream(s, int(r.length))
		return nil
	}
	ctx.Response.SetBody(whole)
	_ = s.Close() // all of it is here
	return nil
}

// pieces are what streamed replies pass through.
var pieces = sync.Pool{New: func() any { b := make([]byte, 64<<10+32); return &b }}

// replyStream is read by the server while it writes the reply out, and closed
// by it in every case.
type replyStream struct {
	*Reply
	ctx     *fasthttp.RequestCtx
	done    func(error)
	started bool
	err     error
}

func (s *replyStream) Read(p []byte) (int, error) {
	if !s.started {
		s.started = true
		_ = s.ctx.Conn().SetWriteDeadline(s.until)
	}
	n, err := s.body.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (s *replyStream) SupportsBodyWriteTo() bool { return true }

// WriteTo implements io.WriterTo: what has come goes on at once, in pieces of up
// to a record of the envelope. The server's own loop would cut them to 4 KiB, a
// chunk and a system call each.
func (s *replyStream) WriteTo(w io.Writer) (int64, error) {
	n, err := s.req.Copy(w, s, s.ctx.Response.ImmediateHeaderFlush)
	if err != nil && s.err == nil { // it was not the peer
		s.err = api.Wrap(api.CodeCallerGone, err, "the caller did not take the reply")
	}
	return n, err
}

// Copy writes what r gives as it comes, in pieces of up to a record of the
// envelope, and keeps nothing of it. It is for the server's writer of the reply to
// b's request, whose header is out if flushed says so.
func (b *Body) Copy(w io.Writer, r io.Reader, flushed bool) (int64, error) {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	defer b.enter(writing)
	bw, counted := w.(*bufio.Writer) // a body of known length is not cut into chunks, which flush
	var total int64
	for {
		if flushed && !counted {
			b.enter(pausing)
		}
		n, err := r.Read(*buf)
		if n > 0 {
			b.enter(writing)
			m, werr := w.Write((*buf)[:n])
			total += int64(m)
			flushed = true
			if counted && werr == nil {
				werr = bw.Flush()
			}
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (s *replyStream) Close() error {
	s.once.Do(func() {
		err := s.body.Close()
		s.req.Release()
		s.free()
		if s.err == nil {
			s.err = err
		}
		s.err = s.req.Because(s.err)
		if s.done != nil {
			s.done(s.err)
		}
	})
	return nil
}

// RoundTrip makes any other request, over the connections for large bodies.
func (u *Upstream) RoundTrip(req *http.Request) (*http.Response, error) {
	return u.large.RoundTrip(req)
}
