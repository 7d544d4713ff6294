package gossip

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/faasd-sec/faasd-sec/api"
)

// ErrClosed is what waiting on a closed mesh ends with.
var ErrClosed = errors.New("gossip: the mesh is closed")

// views publishes one view after another.
type views struct {
	current atomic.Pointer[api.ClusterView]

	mu     sync.Mutex
	next   chan struct{} // closed by the next publish
	past   chan struct{} // closed from the start
	closed bool
}

func newViews(first *api.ClusterView) *views {
	v := &views{next: make(chan struct{}), past: make(chan struct{})}
	v.current.Store(first)
	close(v.past)
	return v
}

func (v *views) publish(view *api.ClusterView) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return
	}
	v.current.Store(view)
	close(v.next)
	v.next = make(chan struct{})
}

func (v *views) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		v.closed = true
		close(v.next)
	}
}

// changed gives a channel that is closed once a view newer than version is out.
func (v *views) changed(version uint64) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed && v.current.Load().Version > version {
		return v.past
	}
	return v.next
}

func (v *views) wait(ctx context.Context, version uint64) (*api.ClusterView, error) {
	for {
		ch := v.changed(version)
		if view := v.current.Load(); view.Version > version {
			return view, nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		v.mu.Lock()
		closed := v.closed
		v.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
	}
}
