package shim

import (
	"context"
	"net"
	"sync"
)

// connections is a listener that knows which of its connections are open. A
// process that ends too early would cut off answers that are on their way; the
// library that serves does not tell when the last was sent, but containerd
// closes the connection of each task it has deleted.
type connections struct {
	net.Listener

	mu   sync.Mutex
	open int
	none chan struct{} // closed while none is open
}

func countConnections(l net.Listener) *connections {
	c := &connections{Listener: l, none: make(chan struct{})}
	close(c.none)
	return c
}

// Accept implements net.Listener.
func (c *connections) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == 0 {
		c.none = make(chan struct{})
	}
	c.open++
	return &countedConn{Conn: conn, of: c}, nil
}

// idle waits until no connection is open, or ctx ends.
func (c *connections) idle(ctx context.Context) {
	c.mu.Lock()
	none := c.none
	c.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}

type countedConn struct {
	net.Conn
	of   *connections
	once sync.Once
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.once.Do(func() {
		c.of.mu.Lock()
		defer c.of.mu.Unlock()
		c.of.open--
		if c.of.open == 0 {
			close(c.of.none)
		}
	})
	return c.Conn.Close()
}
