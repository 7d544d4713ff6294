package node

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// order has the node drain, or work again.
func (w *world) order(method string) {
	w.t.Helper()
	if status, _, body := w.do(method, api.NodePathDrain, nil); status != http.StatusNoContent {
		w.t.Fatalf("%s: %d %s", method, status, body)
	}
}

// live are the sandboxes that are not on their way out.
func (w *world) live() (n int) {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	for _, s := range w.n.fleet {
		if s.state < stopping {
			n++
		}
	}
	return n
}

func TestDrainedNodeFinishesAndTakesNothingNew(t *testing.T) {
	var mu sync.Mutex
	var told bool
	w := newWorld(t, func(w *world) {
		w.mesh = func(l api.NodeLoad) { mu.Lock(); told = l.Draining; mu.Unlock() }
	})
	says := func() bool { mu.Lock(); defer mu.Unlock(); return told }
	busy, idle := w.known("busy"), w.known("idle")
	if status, _, _ := w.invoke(idle); status != 200 {
		t.Fatal(status)
	}
	hold, held := make(chan struct{}), make(chan struct{})
	w.work = func(http.ResponseWriter, *http.Request) { close(held); <-hold }
	done := make(chan int, 1)
	go func() { status, _, _ := w.invoke(busy); done <- status }()
	<-held
	w.work = nil
	for range 2 {
		w.order(http.MethodPut)
	}
	w.eventually("the mesh hears of it, and the idle one is stopped", func() bool { return says() && w.live() == 1 })
	for _, f := range []function{busy, idle} {
		if status, h, _ := w.invoke(f); status != http.StatusServiceUnavailable || h.Get(api.HeaderRefused) != string(api.CodeDraining) {
			t.Errorf("something new: %d, refused with %q", status, h.Get(api.HeaderRefused))
		}
	}
	if w.n.Ready() == nil {
		t.Error("it says it is ready")
	}
	close(hold)
	if status := <-done; status != 200 {
		t.Errorf("what ran: %d", status)
	}
	w.eventually("nothing runs", func() bool { return len(w.fleet()) == 0 })
	// An operator's word outlives the daemon.
	w.crash()
	if status, h, _ := w.invoke(busy); status != http.StatusServiceUnavailable || h.Get(api.HeaderRefused) != string(api.CodeDraining) {
		t.Errorf("after a crash: %d, refused with %q", status, h.Get(api.HeaderRefused))
	}
	for range 2 {
		w.order(http.MethodDelete)
	}
	if status, _, _ := w.invoke(busy); status != 200 {
		t.Errorf("at work again: %d", status)
	}
	w.eventually("the mesh hears of it", func() bool { return !says() })
	w.crash()
	if status, _, _ := w.invoke(busy); status != 200 {
		t.Errorf("at work again, after a crash: %d", status)
	}
	w.empty()
}

func TestDrainTakenBackStopsNothingMore(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.DrainTimeout = 300 * time.Millisecond })
	f := w.known("f")
	hold, held := make(chan struct{}), make(chan struct{})
	w.work = func(http.ResponseWriter, *http.Request) { close(held); <-hold }
	done := make(chan int, 1)
	go func() { status, _, _ := w.invoke(f); done <- status }()
	<-held
	w.work = nil
	w.order(http.MethodPut)
	w.order(http.MethodDelete)
	time.Sleep(2 * w.cfg.DrainTimeout) // in which it would have been stopped
	if w.live() != 1 {
		t.Error("it was stopped")
	}
	close(hold)
	if status := <-done; status != 200 {
		t.Error(status)
	}
	// The grace holds.
	hold, held = make(chan struct{}), make(chan struct{})
	defer close(hold)
	w.work = func(_ http.ResponseWriter, r *http.Request) {
		close(held)
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	}
	go func() { status, _, _ := w.invoke(f); done <- status }()
	<-held
	w.order(http.MethodPut)
	w.eventually("it is stopped after the grace", func() bool { return len(w.fleet()) == 0 })
	if status := <-done; status == 200 {
		t.Error("what was stopped is said to have succeeded")
	}
}
