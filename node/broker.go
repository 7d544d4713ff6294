package node

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// nearEvery is how often KeepNear asks, and brokerIdle how old an unused
	// connection may be: less than the two minutes after which a broker ends it.
	nearEvery  = 45 * time.Second
	brokerIdle = 100 * time.Second

	brokerConns = 16      // kept at most
	brokerReply = 1 << 20 // bytes of the longest answer
)

// HTTPBroker reaches a key broker over HTTP, on connections that it keeps. A
// start waits for it: there is no goroutine between the asker and the socket. It
// is safe for concurrent use.
type HTTPBroker struct {
	Dial func(ctx context.Context) (net.Conn, error) // makes an authenticated connection

	mu     sync.Mutex
	idle   []*brokerConn // the one used last is the last
	closed bool
}

// brokerConn is one connection; a request and its answer have it alone.
type brokerConn struct {
	net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	used time.Time
}

// Release implements Broker.
func (b *HTTPBroker) Release(ctx context.Context, req api.ReleaseRequest) (api.ReleaseReply, error) {
	var reply api.ReleaseReply
	out, err := b.post(ctx, api.BrokerPathRelease, req)
	if err != nil {
		return reply, err
	}
	if err := json.Unmarshal(out, &reply); err != nil {
		return reply, api.Wrap(api.CodeUnavailable, err, "the key broker's reply is not understood")
	}
	return reply, nil
}

// Attest implements Broker.
func (b *HTTPBroker) Attest(ctx context.Context, req api.AttestRequest) error {
	_, err := b.post(ctx, api.BrokerPathAttest, req)
	return err
}

func (b *HTTPBroker) post(ctx context.Context, path string, req any) ([]byte, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode a request to the key broker: %w", err)
	}
	return b.exchange(ctx, http.MethodPost, path, body)
}

// exchange makes one request and returns the body of the answer. All that is
// asked of a broker may be asked twice, and is where a kept connection turns out
// to have ended.
func (b *HTTPBroker) exchange(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	c := b.kept()
	if c != nil {
		status, out, err := b.over(ctx, c, method, path, body)
		if err == nil {
			return okay(status, out)
		}
		if ctx.Err() != nil {
			return nil, api.Wrap(api.CodeUnavailable, err, "the key broker did not answer")
		}
	}
	conn, err := b.Dial(ctx)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the key broker cannot be reached")
	}
	c = &brokerConn{Conn: conn, r: bufio.NewReader(conn), w: bufio.NewWriterSize(conn, 8<<10)}
	status, out, err := b.over(ctx, c, method, path, body)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the key broker broke off")
	}
	return okay(status, out)
}

func okay(status int, out []byte) ([]byte, error) {
	if status != http.StatusOK && status != http.StatusNoContent {
		return nil, api.ParseProblem(status, out)
	}
	return out, nil
}

// over makes the exchange on c, which it keeps or closes.
func (b *HTTPBroker) over(ctx context.Context, c *brokerConn, method, path string, body []byte) (status int, out []byte, err error) {
	until, _ := ctx.Deadline() // zero is none
	if err := c.SetDeadline(until); err != nil {
		_ = c.Close()
		return 0, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	status, out, last, err := c.exchange(method, path, body)
	if !stop() || err != nil || last {
		_ = c.Close()
		return status, out, err
	}
	b.keep(c)
	return status, out, nil
}

func (c *brokerConn) exchange(method, path string, body []byte) (status int, out []byte, last bool, err error) {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.Header.SetMethod(method)
	req.SetRequestURI(path)
	req.Header.SetHost("keybroker")
	req.Header.SetUserAgent("faasd-sec")
	if len(body) > 0 {
		req.Header.SetContentType(api.ContentTypeJSON)
		req.SetBodyRaw(body)
	}
	if err := req.Write(c.w); err != nil {
		return 0, nil, true, err
	}
	if err := c.w.Flush(); err != nil {
		return 0, nil, true, err
	}
	if err := resp.ReadLimitBody(c.r, brokerReply); err != nil {
		return 0, nil, true, err
	}
	// What follows an answer was not asked for, and must not pass for the next one.
	last = resp.ConnectionClose() || c.r.Buffered() > 0
	return resp.StatusCode(), append([]byte(nil), resp.Body()...), last, nil
}

// kept takes the connection that was used last, and ends those that are too old.
func (b *HTTPBroker) kept() *brokerConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.idle) - 1
	if n < 0 {
		return nil
	}
	c := b.idle[n]
	if time.Since(c.used) > brokerIdle { // and so are all others
		b.drop()
		return nil
	}
	b.idle = b.idle[:n]
	return c
}

func (b *HTTPBroker) keep(c *brokerConn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		_ = c.Close()
		return
	}
	if len(b.idle) == brokerConns {
		_ = b.idle[0].Close()
		b.idle = append(b.idle[:0], b.idle[1:]...)
	}
	c.used = time.Now()
	b.idle = append(b.idle, c)
}

// drop ends the idle connections. mu is held.
func (b *HTTPBroker) drop() {
	for _, c := range b.idle {
		_ = c.Close()
	}
	b.idle = nil
}

// KeepNear keeps a connection to the broker open until ctx ends, so that the
// first start after a quiet hour does not wait for a handshake. A broker that is
// away is left to the starts, which say so. From its end on no connection is kept.
func (b *HTTPBroker) KeepNear(ctx context.Context) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.closed = true
		b.drop()
	}()
	tick := time.NewTicker(nearEvery)
	defer tick.Stop()
	for {
		b.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks for what anybody may know, and throws the answer away.
func (b *HTTPBroker) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, nearEvery/2)
	defer cancel()
	_, _ = b.exchange(ctx, http.MethodGet, api.BrokerPathInfo, nil)
}
