package node

import (
	"context"
	"net"
	"path/filepath"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
)

const (
	// nearAge is how long a connection that was opened ahead may have been silent:
	// less than the two minutes after which an agent gives it up, and more than
	// proofRenew, with which it is opened anew.
	nearAge = 110 * time.Second
	// nearWait bounds the opening.
	nearWait = 5 * time.Second
)

// dialAgent connects to the agent's HTTP socket.
func (b *box) dialAgent(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(b.dir, filepath.Base(api.AgentHTTPSocket)))
}

// approach opens a connection to the agent of a box that waits, which its first
// invocation will find. The agent answers that it serves nothing. Where it goes
// wrong the invocation dials, as all others do.
func (n *Node) approach(b *box) {
	if b.owner.Load() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(n.life, nearWait)
	defer cancel()
	conn, err := relay.OpenAhead(ctx, b.dialAgent, api.AgentPathNothing)
	if err != nil {
		n.log.Debug("connection ahead", "sandbox", b.id, "err", err)
		return
	}
	b.mu.Lock()
	old := b.near
	b.near, b.nearAt = conn, time.Now()
	if b.hung {
		old, b.near = conn, nil
	}
	b.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// takeNear gives the connection away, nil where there is none that is good.
func (b *box) takeNear() net.Conn {
	b.mu.Lock()
	conn, at := b.near, b.nearAt
	b.near = nil
	b.mu.Unlock()
	if conn != nil && time.Since(at) > nearAge {
		conn.Close()
		return nil
	}
	return conn
}
