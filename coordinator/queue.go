package coordinator

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// waiting bounds the invocations that found no room and wait for some.
type waiting struct {
	size  int64
	count atomic.Int64
	mu    sync.Mutex
	freed chan struct{} // closed and replaced when an invocation of ours ended
}

func newWaiting(size int) *waiting { return &waiting{size: int64(size), freed: make(chan struct{})} }

// enter takes a place, or refuses: patience has a bound.
func (w *waiting) enter() error {
	if w.count.Add(1) > w.size {
		w.count.Add(-1)
		e := api.Errorf(api.CodeBusy, "the cluster is full and %d invocations wait already", w.size)
		e.Remedy = "retry later, or add a node"
		return e
	}
	return nil
}

func (w *waiting) leave() { w.count.Add(-1) }

// next is closed when something ended after the call.
func (w *waiting) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.freed
}

// signal wakes those that wait.
func (w *waiting) signal() {
	if w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	close(w.freed)
	w.freed = make(chan struct{})
	w.mu.Unlock()
}

// retryEvery is how long a waiting invocation relies on being told of room.
const retryEvery = 250 * time.Millisecond

// wait returns when there may be room again: freed is what next gave before the
// attempt that found none.
func (w *waiting) wait(ctx context.Context, freed, changed <-chan struct{}) error {
	t := time.NewTimer(retryEvery)
	defer t.Stop()
	select {
	case <-freed:
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
