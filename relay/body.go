// Package relay passes one HTTP exchange from a fasthttp server on to an
// upstream connection without looking into it.
//
// Small bodies, the usual case, are read whole into a pooled buffer and cost
// one write upstream. A larger or endless body flows through in both
// directions at once, so that a function may answer while it still reads, in
// memory that does not grow with the body. The relay promises that it never
// sends the same body twice, that it reports whether anything was sent at all,
// and that nothing reads from a server connection once the server takes it back.
package relay

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// SmallBody is the most, in bytes, that is buffered rather than streamed.
const SmallBody = 256 << 10

// Body is a request body on its way. Release must be called once.
type Body struct {
	Head  []byte // all of a small body, the first bytes of a large one
	Small bool   // Head is the whole body
	size  int64  // of the whole body, -1 if unknown
	rest  *serverStream
	buf   *[]byte

	stored io.ReadCloser // in place of rest, see NewBody
	caller watch
}

// Size is the length of the whole body in bytes, -1 if it is not known yet.
func (b *Body) Size() int64 { return b.size }

// buffers holds SmallBody-sized read buffers.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// ReadBody takes the body of ctx's request. Up to SmallBody bytes are read at
// once; what follows stays in the connection. A body over limit bytes is
// refused with CodeTooLarge, at its header where that tells. Reading is bounded
// by the deadline that the server set on the connection.
func ReadBody(ctx *fasthttp.RequestCtx, limit int64) (*Body, error) {
	size := int64(ctx.Request.Header.ContentLength())
	if size < 0 {
		size = -1
	}
	if limit > 0 && size > limit {
		ctx.SetConnectionClose() // the body is not read
		return nil, tooLarge(limit)
	}
	buf := buffers.Get().(*[]byte)
	b := &Body{size: size, buf: buf}
	stream := ctx.RequestBodyStream()
	if stream == nil { // the server does not stream: it has read all of it
		b.Head, b.Small = append((*buf)[:0], ctx.PostBody()...), true
		b.size = int64(len(b.Head))
		return b, nil
	}
	want := SmallBody + 1
	if limit > 0 && limit < SmallBody {
		want = int(limit) + 1 // one byte too many tells
	}
	if size >= 0 && size <= SmallBody {
		want = int(size)
	}
	if size > SmallBody {
		want = 8 << 10
	}
	head, err := readUpTo((*buf)[:0], stream, want)
	*buf = head
	if err == nil && size >= 0 && len(head) < want { // fasthttp gives io.EOF for a body that was cut
		err = io.ErrUnexpectedEOF
	}
	switch {
	case err != nil:
		ctx.SetConnectionClose()
		b.Release()
		return nil, api.Wrap(api.CodeInvalid, err, "the request body ended early or came too slowly")
	case limit > 0 && int64(len(head)) > limit:
		ctx.SetConnectionClose() // the rest is not read
		b.Release()
		return nil, tooLarge(limit)
	case size >= 0 && int64(len(head)) == size, size < 0 && len(head) < want:
		b.Head, b.Small, b.size = head, true, int64(len(head))
		return b, nil
	}
	b.Head = head
	b.rest = &serverStream{ctx: ctx, r: stream, left: -1, size: -1}
	if size >= 0 {
		b.rest.size = size - int64(len(head))
	}
	if limit > 0 {
		b.rest.left = limit - int64(len(head))
	}
	return b, nil
}

func tooLarge(limit int64) error {
	e := api.Errorf(api.CodeTooLarge, "the body is over the limit of %d bytes", limit)
	e.Field, e.Remedy = "body", "send less, or have the operator raise the limit"
	return e
}

// Release gives the buffer back and waits until nothing reads from the server
// connection any more.
func (b *Body) Release() {
	b.unwatch()
	if b.rest != nil {
		b.rest.Close()
		b.Keep(b.rest.ctx)
	}
	if b.stored != nil {
		_ = b.stored.Close() // it was read, or is not wanted
		b.stored = nil
	}
	if b.buf != nil {
		if cap(*b.buf) <= SmallBody+64<<10 {
			*b.buf = (*b.buf)[:0]
			buffers.Put(b.buf)
		}
		b.buf, b.Head = nil, nil
	}
}

// Keep decides, when the reply's header is about to go out, whether the
// connection may serve a next request: only if all of this one's body has been
// read, for what nobody read would be taken for the next.
func (b *Body) Keep(ctx *fasthttp.RequestCtx) {
	b.enter(writing)
	if b.rest != nil && !b.rest.ended.Load() {
		ctx.SetConnectionClose()
	}
}

// Reader reads the whole body once, from its start, until the given time. Close
// it before Release; a Read under way ends with either.
func (b *Body) Reader(until time.Time) io.ReadCloser {
	l := &largeBody{head: b.Head, rest: eof{}}
	if b.rest != nil {
		l.rest = b.rest
		// A deadline on the caller's connection, so that a stalled upload ends.
		_ = b.rest.ctx.Conn().SetReadDeadline(until)
	}
	return l
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// readUpTo appends up to n bytes of r to dst, growing it as they come, so that
// a header that announces much reserves nothing.
func readUpTo(dst []byte, r io.Reader, n int) ([]byte, error) {
	for len(dst) < n {
		if len(dst) == cap(dst) {
			dst = append(dst, 0)[:len(dst)]
		}
		m, err := r.Read(dst[len(dst):min(cap(dst), n)])
		dst = dst[:len(dst)+m]
		if err == io.EOF {
			break
		}
		if err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// serverStream reads the rest of a request body from a server connection. It
// may be closed while a Read is under way: fasthttp takes the reader back as
// soon as the reply is out, so Close must not return before Read did.
type serverStream struct {
	ctx    *fasthttp.RequestCtx
	r      io.Reader
	left   int64 // bytes still allowed, -1 without limit
	size   int64 // bytes there are, -1 if unknown
	got    int64
	mu     sync.Mutex
	closed bool
	ended  atomic.Bool // all was read
	once   sync.Once
}

// Read implements io.Reader.
func (s *serverStream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, io.ErrClosedPipe
	}
	if s.ended.Load() {
		return 0, io.EOF
	}
	if s.left == 0 {
		p = p[:min(len(p), 1)] // is there one byte too many?
	} else if s.left > 0 && int64(len(p)) > s.left {
		p = p[:s.left]
	}
	n, err := s.r.Read(p)
	if s.left == 0 && n > 0 {
		n, err = 0, errors.New("relay: body over its limit")
	}
	if s.left > 0 {
		s.left -= int64(n)
	}
	s.got += int64(n)
	if err == io.EOF {
		if s.size >= 0 && s.got != s.size { // fasthttp gives io.EOF for a body that was cut
			return n, io.ErrUnexpectedEOF
		}
		s.ended.Store(true)
	}
	return n, err
}

// Close ends a Read under way by letting the connection's deadline pass, and
// waits for it.
func (s *serverStream) Close() error {
	s.once.Do(func() {
		if !s.mu.TryLock() {
			// Best effort: a connection that cannot take a deadline is broken,
			// and then Read returns anyway.
			_ = s.ctx.Conn().SetReadDeadline(time.Unix(1, 0))
			s.mu.Lock()
		}
		s.closed = true
		s.mu.Unlock()
	})
	return nil
}

// Empty is a body without a byte.
func Empty() *Body { return &Body{Small: true} }
