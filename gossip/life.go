package gossip

import (
	"context"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// defaultLeave bounds telling the others where ctx does not.
const defaultLeave = 5 * time.Second

// UpdateMeta replaces what this member says of itself; the ID stays. It refuses
// what does not fit into 512 bytes, naming the part that is too long. The others
// learn it by gossip; ctx bounds the wait until that has begun, and running out
// of it is no error, since the exchange of state carries the change as well.
func (m *Mesh) UpdateMeta(ctx context.Context, meta api.NodeMeta) error {
	if meta.ID != m.id {
		return api.Invalid("meta.id", "leave and join to change it", fmt.Sprintf("the member is %q, not %q", m.id, meta.ID))
	}
	m.life.Lock()
	defer m.life.Unlock()
	if m.left.Load() {
		return ErrClosed
	}
	m.mu.Lock()
	wire, err := m.codec.encodeMeta(meta, m.cfg.Epoch)
	if err == nil {
		m.meta, m.metaWire = meta, wire
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if err := m.list.UpdateNode(timeLeft(ctx)); err != nil {
		m.logger.Debug("gossip: new meta not confirmed yet", "error", err)
	}
	return nil
}

// Leave tells the others that this member goes, so that they need not find out.
// It goes on passing gossip until Close. ctx bounds the wait until some were
// told; without a deadline that is 5 seconds.
func (m *Mesh) Leave(ctx context.Context) error {
	m.life.Lock()
	defer m.life.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.left.Store(true)
	if err := m.list.Leave(timeLeft(ctx)); err != nil {
		return fmt.Errorf("gossip: leave: %w", err)
	}
	return nil
}

// timeLeft is how long memberlist may wait: it knows timeouts, not contexts, and
// takes 0 for no bound.
func timeLeft(ctx context.Context) time.Duration {
	if ctx.Err() != nil {
		return time.Nanosecond
	}
	if deadline, ok := ctx.Deadline(); ok {
		return max(time.Nanosecond, min(time.Until(deadline), defaultLeave))
	}
	return defaultLeave
}

// Close ends the membership without a word to the others, who take it for dead
// unless Leave came first. It returns when this package's goroutines have ended
// and the sockets are closed; memberlist's end with the probe or exchange they
// are at. Further calls do nothing.
func (m *Mesh) Close() error {
	m.cancel()
	m.life.Lock()
	defer m.life.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	m.left.Store(true)
	err := m.list.Shutdown() // cuts the streams a rejoin may be waiting on
	m.tasks.Wait()
	m.views.close()
	if err != nil {
		return fmt.Errorf("gossip: close: %w", err)
	}
	return nil
}
