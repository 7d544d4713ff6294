package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// oneWrite is the most, in bytes, of a body that is copied behind the request's
// header, to be written with it.
const oneWrite = 32 << 10

// Field is one header.
type Field = sealed.Field

// Request is one request to the function.
type Request struct {
	Method string
	Path   string
	Query  string
	Header []sealed.Field

	Small  []byte    // the whole body, if Body is nil
	Body   io.Reader // read by another goroutine until Response.Close returns
	Length int64     // of Body, -1 if unknown
	Cancel func()    // makes a Read of Body under way return; needed with Body

	Deadline time.Time // of the whole exchange, zero for none
	Upgrade  string    // the protocol to go over to, with a status of 101; empty for none
	Once     bool      // never send it again, whatever its method
	All      bool      // keep all headers of the reply, whatever Config.Fields
	Wipe     bool      // the header is not to stay in memory: no buffer that was used for it is kept
	Sent     func()    // called when the request is on its way, before the reply is awaited; may be nil

	mu      sync.Mutex
	cn      *conn // in use for it
	aborted bool
}

// Abort ends the exchange from another goroutine: the one under way, or as soon as
// it has a connection.
func (r *Request) Abort() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.aborted = true
	if r.cn != nil {
		_ = r.cn.Close()
	}
}

// on notes the connection that the exchange uses, nil when it no longer does:
// by then another request may.
func (r *Request) on(cn *conn) {
	r.mu.Lock()
	r.cn = cn
	if r.aborted && cn != nil {
		_ = cn.Close()
	}
	r.mu.Unlock()
}

// Response is the function's reply; Read reads its body. It is not safe for
// concurrent use. Close must be called.
type Response struct {
	Status int
	Header []sealed.Field
	Length int64 // of the body, -1 if unknown
	Stated int64 // the header's Content-Length, -1 if absent: of a HEAD request's reply what a GET's would have

	c       *Client
	cn      *conn
	r       *Request
	pump    *pump
	body    io.Reader
	exact   exactReader
	ended   bool // the body was read to its end
	mayKeep bool
	closed  bool
}

// Do sends r and returns when the reply's header is there. An error that wraps
// an error of r.Body is reported as a *BodyError, because it is the caller's.
func (c *Client) Do(ctx context.Context, r *Request) (*Response, error) {
	resp, retry, err := c.do(ctx, r, false)
	if err != nil && retry {
		resp, _, err = c.do(ctx, r, true)
	}
	return resp, err
}

// BodyError is an error of the request's body, not of the function.
type BodyError struct{ Err error }

// Error implements error.
func (e *BodyError) Error() string { return "request body: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *BodyError) Unwrap() error { return e.Err }

func (c *Client) do(ctx context.Context, r *Request, fresh bool) (_ *Response, retry bool, _ error) {
	if r.Body == nil {
		r.Length = int64(len(r.Small))
	}
	if r.Cancel == nil {
		r.Cancel = func() {}
	}
	cn, err := c.get(ctx, fresh)
	if err != nil {
		return nil, false, err
	}
	r.on(cn)
	if err := cn.SetDeadline(r.Deadline); err != nil {
		r.on(nil)
		c.put(cn, false)
		return nil, !cn.fresh && r.Body == nil, fmt.Errorf("%w: %w", ErrDial, err)
	}
	wbuf := cn.wbuf[:0]
	if r.Wipe { // large enough not to grow, which would leave a copy
		wbuf = make([]byte, 0, headSize(r, c.cfg.Host)+min(len(r.Small), oneWrite))
	}
	if wbuf, err = appendRequest(wbuf, r, c.cfg.Host); err != nil {
		r.on(nil)
		c.put(cn, false)
		return nil, false, &BodyError{err}
	}
	inline := r.Body == nil && len(r.Small) <= c.cfg.Inline
	whole := inline && len(r.Small) <= oneWrite
	if whole {
		wbuf = append(wbuf, r.Small...)
	}
	_, err = cn.Write(wbuf)
	if r.Wipe {
		clear(wbuf)
	} else {
		cn.wbuf = wbuf
	}
	if err == nil && inline && !whole {
		_, err = cn.Write(r.Small)
	}
	if err != nil {
		// It may have closed the kept connection with our request unread.
		again := !cn.fresh && r.Body == nil && r.again()
		r.on(nil)
		c.put(cn, false)
		return nil, again, fmt.Errorf("send request: %w", err)
	}
	resp := &Response{c: c, cn: cn, r: r}
	if !inline {
		resp.pump = startPump(cn, r)
	}
	if r.Sent != nil {
		r.Sent()
	}
	only, most := c.cfg.Fields, c.cfg.MaxHeader
	if r.All {
		only, most = nil, maxHeaderBytes
	}
	h, n, err := readHead(cn.br, only, most)
	for err == nil && h.status < 200 {
		if h.status == 101 {
			if r.Upgrade == "" {
				err = badReply("it wants to upgrade the connection")
			}
			break
		}
		h, _, err = readHead(cn.br, only, most)
	}
	if err != nil {
		again := inline && n == 0 && !cn.fresh && r.again() && connectionEnded(err)
		if srcErr := resp.Close(); srcErr != nil {
			return nil, false, srcErr
		}
		return nil, again, fmt.Errorf("read reply: %w", err)
	}
	resp.take(h)
	return resp, false, nil
}

// headSize is more than appendRequest writes.
func headSize(r *Request, host string) int {
	n := 256 + len(r.Method) + len(r.Path)*3 + len(r.Query) + len(host)
	for _, f := range r.Header {
		n += len(f.Name) + len(f.Value) + 4
	}
	return n
}

// again reports whether it may be sent once more.
func (r *Request) again() bool { return !r.Once && idempotent(r.Method) }

func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE":
		return true
	}
	return false
}

func connectionEnded(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// take decides how the reply's body ends (RFC 9112, 6.3).
func (p *Response) take(h head) {
	p.Status, p.Header, p.Length, p.Stated = h.status, h.fields, h.length, h.length
	p.mayKeep = !h.close && (!h.http10 || h.keep)
	switch {
	case h.status == 101:
		p.Length, p.Stated, p.ended, p.mayKeep = 0, -1, true, false
	case p.r.Method == "HEAD" || h.status == 204 || h.status == 304:
		p.Length, p.ended = 0, true
	case h.chunked:
		p.body = &chunkReader{br: p.cn.br}
	case h.length == 0:
		p.ended = true
	case h.length > 0:
		p.exact = exactReader{r: p.cn.br, left: h.length}
		p.body = &p.exact
	default: // until the connection ends
		p.body, p.mayKeep = p.cn.br, false
	}
}

// Read implements io.Reader.
func (p *Response) Read(b []byte) (int, error) {
	if p.ended {
		return 0, io.EOF
	}
	n, err := p.body.Read(b)
	if err == io.EOF {
		p.ended = true
	}
	return n, err
}

// Buffered is the number of bytes that have arrived already: a Read returns at
// once when it is above 0.
func (p *Response) Buffered() int {
	if p.ended {
		return 0
	}
	if c, ok := p.body.(*chunkReader); ok {
		return c.buffered()
	}
	return p.cn.br.Buffered()
}

// Finish waits until all of the request's body was read, also when the function
// wanted no more of it, and returns the body's error if it had one. It is what
// a reply must wait for that may only succeed if the request was whole.
func (p *Response) Finish() error {
	if p.pump == nil {
		return nil
	}
	var late <-chan time.Time
	if !p.r.Deadline.IsZero() {
		t := time.NewTimer(time.Until(p.r.Deadline))
		defer t.Stop()
		late = t.C
	}
	select {
	case <-p.pump.done:
	case <-late:
		p.r.Cancel()
		<-p.pump.done
	}
	return p.pump.bodyError()
}

// Close gives the connection back, or ends it if the exchange is not over, and
// returns the error of the request's body, if that is what ended it.
func (p *Response) Close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	keep := p.ended && p.mayKeep
	var err error
	if p.pump != nil {
		select {
		case <-p.pump.done:
		default:
			keep = false
			_ = p.cn.Close() // ends its writes
			p.pump.abandoned.Store(true)
			p.r.Cancel() // and its reads
			<-p.pump.done
		}
		keep = keep && p.pump.whole
		err = p.pump.bodyError()
	}
	p.r.on(nil)
	p.c.put(p.cn, keep)
	return err
}

// exactReader reads a body of a known length.
type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(b []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(b[:min(int64(len(b)), e.left)])
	e.left -= int64(n)
	switch {
	case err == io.EOF && e.left > 0:
		err = io.ErrUnexpectedEOF
	case e.left == 0:
		err = io.EOF
	}
	return n, err
}

// pumpBuffers hold the bodies in flight: one record of the envelope each.
var pumpBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}
