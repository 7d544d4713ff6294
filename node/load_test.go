package node

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// lists is a runtime that counts how often it is asked for its images.
type lists struct {
	runtime.Runtime
	n *atomic.Int64
}

func (l lists) Images(ctx context.Context) ([]string, error) {
	l.n.Add(1)
	return l.Runtime.Images(ctx)
}

func TestImagesAreNotListedBesideAStartButNotForgotten(t *testing.T) {
	var n atomic.Int64
	w := newWorld(t, func(w *world) {
		w.watched = func(r runtime.Runtime) runtime.Runtime { return lists{r, &n} }
	})
	w.eventually("the images are listed", func() bool { s := w.n.seen.Load(); return s != nil && n.Load() > 0 })
	w.n.mu.Lock()
	w.n.pool.taken = time.Now().Add(time.Hour) // one start follows another
	w.n.mu.Unlock()
	listed := func(ago time.Duration) int64 {
		s := *w.n.seen.Load()
		s.listed = time.Now().Add(-ago)
		w.n.seen.Store(&s)
		before := n.Load()
		w.n.look()
		return n.Load() - before
	}
	if listed(2*imagesPause) != 0 {
		t.Error("listed beside a start")
	}
	w.eventually("the images are listed all the same", func() bool { return listed(imagesMost) > 0 })
}
