package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/nbio"
)

// ErrNotSent means that the upstream could not be reached: no byte of the
// request left, and it may safely go elsewhere.
var ErrNotSent = errors.New("relay: upstream not reached")

// Upstream is one peer and its kept-alive connections. It is safe for
// concurrent use. Close ends idle connections.
type Upstream struct {
	life  context.Context
	small *fasthttp.HostClient
	large *http.Transport
}

// maxReplyHeader bounds the header of a reply, in bytes.
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
	First func() net.Conn
}

// DefaultOptions fit one peer of a coordinator or node.
func DefaultOptions() Options {
	return Options{MaxConns: 1024, IdleTimeout: 30 * time.Second, DialTimeout: 3 * time.Second}
}

// NewUpstream makes an Upstream over dial. When ctx ends, so does every
// exchange under way: pass a context that outlives the daemon's drain.
func NewUpstream(ctx context.Context, dial Dialer, o Options) *Upstream {
	return &Upstream{
		life: ctx,
		small: &fasthttp.HostClient{
			Addr: "peer", Name: "faasd-sec", MaxConns: o.MaxConns, MaxIdleConnDuration: o.IdleTimeout,
			MaxConnWaitTimeout: o.DialTimeout, NoDefaultUserAgentHeader: true, DisablePathNormalizing: true,
			ReadBufferSize: maxReplyHeader, // a longer reply header is an error
			// A request may have taken effect although its connection broke:
			// nothing is ever sent a second time behind the caller's back.
			MaxIdemponentCallAttempts: 1,
			RetryIfErr:                func(*fasthttp.Request, int, error) (bool, bool) { return false, false },
			Dial: func(string) (net.Conn, error) {
				if conn := o.first(); conn != nil {
					return wholeConn{conn}, nil
				}
				c, cancel := context.WithTimeout(ctx, o.DialTimeout)
				defer cancel()
				conn, err := dial(c)
				if err != nil {
					return nil, &dialError{err}
				}
				return wholeConn{nbio.Wrap(conn)}, nil
			},
		},
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

// wholeConn is a connection whose end never comes in place: fasthttp takes
// io.EOF between two chunks for the end of the body, so that a reply cut there
// would look whole. Our peers always say where a body ends.
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
	u.small.CloseIdleConnections()
	u.large.CloseIdleConnections()
}

// Header is one header to send.
type Header struct{ Name, Value string }

// Reply is an upstream's answer, its body unread. Exactly one of SendTo and
// Discard must be called.
type Reply struct {
	Status int
	length int64
	body   io.ReadCloser
	head   *fasthttp.ResponseHeader // of a small exchange
	large  http.Header              // of a large one
	free   func()
	until  time.Time
	req    *Body
	once   sync.Once
}

// Header is a header of the reply, "" if absent.
func (r *Reply) Header(name string) string {
	if r.head != nil {
		return string(r.head.Peek(name))
	}
	return r.large.Get(name)
}

// Peek is Header without a copy where there need be none: the bytes are valid
// until SendTo or Discard.
func (r *Reply) Peek(name string) []byte {
	if r.head != nil {
		return r.head.Peek(name)
	}
	return []byte(r.large.Get(name))
}

// Post sends body to path and returns as soon as the reply's header is there.
// until bounds the whole exchange, the reply's body included. On ErrNotSent,
// body is untouched and may be posted elsewhere; after any other outcome it may not.
func (u *Upstream) Post(until time.Time, path string, body *Body, headers ...Header) (*Reply, error) {
	if time.Until(until) <= 0 {
		return nil, fmt.Errorf("post %s: %w", path, context.DeadlineExceeded)
	}
	if body.Small {
		return u.postSmall(until, path, body, headers)
	}
	return u.postLarge(until, path, body, headers)
}

func (u *Upstream) postSmall(until time.Time, path string, body *Body, headers []Header) (*Reply, error) {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	req.SetRequestURI(path)
	req.Header.SetHost("peer")
	req.Header.SetMethod(fasthttp.MethodPost)
	for _, h := range headers {
		req.Header.Set(h.Name, h.Value)
	}
	req.SetBodyRaw(body.Head)
	req.SetTimeout(time.Until(until))
	resp.StreamBody = true
	if err := u.small.Do(req, resp); err != nil {
		fasthttp.ReleaseResponse(resp)
		return nil, classify(err)
	}
	return &Reply{
		Status: resp.StatusCode(), length: int64(resp.Header.ContentLength()), until: until,
		body: fastBody{resp}, head: &resp.Header,
		free: func() { fasthttp.ReleaseResponse(resp) }, req: body,
	}, nil
}

// fastBody reads a streamed fasthttp response.
type fastBody struct{ resp *fasthttp.Response }

func (b fastBody) Read(p []byte) (int, error) {
	s := b.resp.BodyStream()
	if s == nil {
		return 0, io.EOF
	}
	return s.Read(p)
}

func (b fastBody) Close() error { return b.resp.CloseBodyStream() }

func (u *Upstream) postLarge(until time.Time, path string, body *Body, headers []Header) (*Reply, error) {
	ctx, cancel := context.WithDeadline(u.life, until)
	src := &largeBody{head: body.Head, rest: body.rest}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://peer"+path, src)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("post %s: %w", path, err)
	}
	req.ContentLength = body.size
	for _, h := range headers {
		req.Header.Set(h.Name, h.Value)
	}
	// A deadline on the caller's connection, so that a stalled upload ends.
	_ = body.rest.ctx.Conn().SetReadDeadline(until)
	resp, err := u.large.RoundTrip(req)
	if err != nil {
		cancel()
		if touched := src.detach(); touched { // some of the body may be gone
			return nil, timedOut(fmt.Errorf("post %s: %w", path, err))
		}
		return nil, classify(err)
	}
	return &Reply{
		Status: resp.StatusCode, length: resp.ContentLength, until: until,
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
	var d *dialError
	if errors.As(err, &d) || errors.Is(err, fasthttp.ErrNoFreeConns) {
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	return timedOut(err)
}

// timedOut gives all forms of a deadline's end one that callers test for.
func timedOut(err error) error {
	if errors.Is(err, fasthttp.ErrTimeout) || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

// Discard drops a reply whose body is not wanted. The connection is kept where
// the body was short.
func (r *Reply) Discard() {
	r.once.Do(func() {
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
	if ct := r.Peek(fasthttp.HeaderContentType); len(ct) > 0 {
		ctx.Response.Header.SetContentTypeBytes(ct)
	}
	for _, h := range headers {
		if v := r.Peek(h); len(v) > 0 {
			ctx.Response.Header.SetBytesV(h, v)
		}
	}
	if r.req.rest != nil {
		r.req.keep(ctx)
	}
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
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	var total int64
	for {
		n, err := s.Read(*buf)
		if n > 0 {
			m, werr := w.Write((*buf)[:n])
			total += int64(m)
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
