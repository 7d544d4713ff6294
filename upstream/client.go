package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/nbio"
)

// Config makes a Client.
type Config struct {
	Dial        func(ctx context.Context) (net.Conn, error)
	Host        string        // the Host header of every request
	Fields      []string      // names, in lower case, of the reply's headers that are of interest; nil keeps all
	MaxHeader   int           // bytes of a reply's header
	MaxIdle     int           // connections kept
	IdleTimeout time.Duration // below the server's own, so that a kept connection is rarely closed under a request
	DialTimeout time.Duration
	// Inline is the most, in bytes, of a body that is written before the reply is
	// read for. One that fits the socket's buffer cannot block us; of a longer one
	// the server must be known to read all.
	Inline int
	Sweep  bool // close connections that were idle for too long also while none is asked for
}

// DefaultConfig keeps 64 connections for 4 seconds: Node closes its after 5.
func DefaultConfig() Config {
	return Config{Host: "127.0.0.1", MaxHeader: maxHeaderBytes, MaxIdle: 64, IdleTimeout: 4 * time.Second,
		DialTimeout: 5 * time.Second, Inline: 32 << 10}
}

// ErrClosed means that the Client was closed.
var ErrClosed = errors.New("upstream: closed")

// ErrDial means that the server takes no connection: nothing was sent.
var ErrDial = errors.New("upstream: no connection is taken")

// Client is one server. It is safe for concurrent use.
type Client struct {
	cfg Config

	mu     sync.Mutex
	closed bool
	idle   []*conn // the last one was used last
	active map[*conn]struct{}
	sweep  *time.Timer // nil while none is to come
}

// New makes a Client.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, active: make(map[*conn]struct{})}
}

// Close closes all connections, also those in use.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.closeIdle()
	for cn := range c.active {
		_ = cn.Close()
	}
}

// CloseIdle closes the connections that no exchange uses.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeIdle()
}

// closeIdle is CloseIdle with mu held.
func (c *Client) closeIdle() {
	for _, cn := range c.idle {
		_ = cn.Close()
	}
	c.idle = nil
	if c.sweep != nil {
		c.sweep.Stop()
		c.sweep = nil
	}
}

// sweepLater has the idle connections looked at in a while. mu is held.
func (c *Client) sweepLater() {
	if c.cfg.Sweep && c.sweep == nil && len(c.idle) > 0 {
		c.sweep = time.AfterFunc(c.cfg.IdleTimeout, c.sweepNow)
	}
}

// sweepNow closes those that were idle for too long, the first ones.
func (c *Client) sweepNow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < len(c.idle) && time.Since(c.idle[n].since) >= c.cfg.IdleTimeout {
		_ = c.idle[n].Close()
		n++
	}
	c.idle = slices.Delete(c.idle, 0, n)
	c.sweep = nil
	c.sweepLater()
}

// conn is one connection to the function.
type conn struct {
	net.Conn
	br    *bufio.Reader
	wbuf  []byte
	since time.Time // idle since
	fresh bool      // no request went over it before
}

// get returns a kept connection or a new one.
func (c *Client) get(ctx context.Context, fresh bool) (*conn, error) {
	c.mu.Lock()
	for !fresh && len(c.idle) > 0 {
		cn := c.idle[len(c.idle)-1]
		c.idle[len(c.idle)-1] = nil
		c.idle = c.idle[:len(c.idle)-1]
		if time.Since(cn.since) > c.cfg.IdleTimeout || !cn.usable() {
			_ = cn.Close()
			continue
		}
		cn.fresh = false
		c.active[cn] = struct{}{}
		c.mu.Unlock()
		return cn, nil
	}
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	nc, err := c.cfg.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDial, err)
	}
	nc = nbio.Wrap(nc)
	cn := &conn{Conn: nc, br: bufio.NewReaderSize(nc, lineBuffer), fresh: true}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = nc.Close()
		return nil, ErrClosed
	}
	c.active[cn] = struct{}{}
	return cn, nil
}

// Offer hands over a connection that was opened before there was a Client. It
// waits for a request as a kept one does.
func (c *Client) Offer(nc net.Conn) {
	nc = nbio.Wrap(nc)
	c.put(&conn{Conn: nc, br: bufio.NewReaderSize(nc, lineBuffer)}, true)
}

// usable reports whether an idle connection is still open and silent.
func (cn *conn) usable() bool {
	return cn.br.Buffered() == 0 && nbio.Silent(cn.Conn)
}

// put gives a connection back; one that is not to be kept is closed.
func (c *Client) put(cn *conn, keep bool) {
	if keep {
		cn.since = time.Now()
	}
	c.mu.Lock()
	delete(c.active, cn)
	if keep && !c.closed && len(c.idle) < c.cfg.MaxIdle {
		c.idle = append(c.idle, cn)
		c.sweepLater()
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	_ = cn.Close()
}

// WaitAccept dials until the function takes a connection, tightly at first and
// then at most every 20 ms. It ends early when ctx or done does.
func (c *Client) WaitAccept(ctx context.Context, done <-chan struct{}) error {
	wait := 200 * time.Microsecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		cn, err := c.get(ctx, true)
		if err == nil {
			c.put(cn, true)
			return nil
		}
		if errors.Is(err, ErrClosed) {
			return err
		}
		timer.Reset(wait)
		select {
		case <-done:
			return errors.New("the process ended before it served")
		case <-ctx.Done():
			return fmt.Errorf("%w; last attempt: %w", ctx.Err(), err)
		case <-timer.C:
		}
		wait = min(wait*3/2, 20*time.Millisecond)
	}
}
