package daemon

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/nbio"
)

// prefetched is how much of a body of known length fasthttp reads before it
// calls a handler (readBodyWithStreaming in its http.go).
const prefetched = 8 << 10

// framed makes sure that what follows on a connection is a request only where
// the former one's body has truly ended. fasthttp with StreamRequestBody reads
// the next request from wherever a handler stopped: the rest of a body that
// nobody read would be executed as requests (request smuggling). A message
// with both Content-Length and Transfer-Encoding, whose end two servers may see
// in two places, is refused (RFC 9112, section 6.1).
func framed(h fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		if ctx.Request.Header.ContentLength() == -1 && hasContentLength(ctx.Request.Header.RawHeaders()) {
			ctx.Error("both Content-Length and Transfer-Encoding\n", fasthttp.StatusBadRequest)
			ctx.SetConnectionClose() // after Error, which resets the response
			linger(ctx)
			return
		}
		h(ctx)
		switch size := ctx.Request.Header.ContentLength(); {
		case size >= 0 && size <= prefetched, size < -1: // all of it is read, or there is none
		case ctx.Response.Header.ConnectionClose():
			linger(ctx)
		case !ended(ctx):
			ctx.SetConnectionClose()
			linger(ctx)
		}
	}
}

// hasContentLength looks for the header in a request's raw ones.
func hasContentLength(raw []byte) bool {
	for line := range bytes.Lines(raw) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("content-length")) {
			return true
		}
	}
	return false
}

// ended reports whether the request's body was read to its end, without waiting
// for any of it.
func ended(ctx *fasthttp.RequestCtx) bool {
	body := ctx.RequestBodyStream()
	if body == nil || ctx.Conn().SetReadDeadline(time.Unix(1, 0)) != nil {
		return false
	}
	var one [1]byte
	n, err := body.Read(one[:])
	return n == 0 && err == io.EOF
}

// linger asks that the connection of ctx end in a way that lets its peer read
// the reply although it still sends.
func linger(ctx *fasthttp.RequestCtx) {
	c := ctx.Conn()
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if l, ok := c.(*lingering); ok {
		l.on.Store(true)
	}
}

const (
	lingerTime  = 5 * time.Second // a slow sender is to come to read
	lingerBytes = 16 << 20
)

// lingerListener makes connections that can linger.
type lingerListener struct{ net.Listener }

// Accept implements net.Listener.
func (l lingerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok && err == nil {
		return &lingering{Conn: nbio.Wrap(t), tcp: t}, nil
	}
	return c, err
}

// lingering is a connection whose Close, when asked to, first says that nothing
// more will be sent and then drops what still comes, for a moment. Closing with
// unread bytes makes the kernel send a reset, on which the peer throws away the
// reply that it did not read yet (RFC 9112, section 9.6).
type lingering struct {
	net.Conn
	tcp *net.TCPConn // the one below
	on  atomic.Bool
}

// NetConn is the connection below.
func (c *lingering) NetConn() net.Conn { return c.Conn }

// Close implements net.Conn.
func (c *lingering) Close() error {
	if c.on.CompareAndSwap(true, false) && c.tcp.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		// Whatever ends the copy, the connection is closed next.
		_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
	}
	return c.Conn.Close()
}
