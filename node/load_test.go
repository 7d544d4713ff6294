package node

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/sealed"
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

// The mesh hears of a function that is there without a free slot, so that who wants
// no other sandbox beside its own does not ask here.
func TestBusySandboxesAreHosted(t *testing.T) {
	w := newWorld(t)
	f := w.known("f", func(d *sealed.Descriptor) { d.Config.MaxInFlight = 1 })
	hosted := func() bool {
		w.n.publish()
		var l api.NodeLoad
		if err := json.Unmarshal([]byte(w.n.load.Load().json), &l); err != nil {
			t.Fatal(err)
		}
		warm := l.Warm[api.RevisionKey(f.digest.String())] > 0
		there := slices.Contains(l.Hosts, api.HostKey(f.digest.String()))
		if warm && there {
			t.Errorf("told twice: %+v", l)
		}
		return there
	}
	hold, held := make(chan struct{}), make(chan struct{})
	w.work = func(http.ResponseWriter, *http.Request) { close(held); <-hold }
	done := make(chan int, 1)
	go func() { status, _, _ := w.invoke(f); done <- status }()
	<-held
	if !hosted() {
		t.Error("a busy sandbox is not told of")
	}
	close(hold)
	if status := <-done; status != 200 {
		t.Fatal(status)
	}
	w.eventually("its slot is free", func() bool { return !hosted() })
	w.empty()
}
