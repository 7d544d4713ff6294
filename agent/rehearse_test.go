package agent

import (
	"sync"
	"testing"
)

func TestRehearsalPlaysTheWholeStart(t *testing.T) {
	cfg := DefaultConfig()
	a := &Agent{cfg: cfg, log: cfg.Logger}
	if err := a.rehearse(func() bool { return true }); err != nil {
		t.Fatal(err)
	}
	steps := 0
	if err := a.rehearse(func() bool { steps++; return steps < 2 }); err != nil || steps != 2 {
		t.Errorf("%d steps of an agent that is wanted: %v", steps, err)
	}
}

// A sandbox that waited long enough to rest starts as any other does.
func TestStartAfterRehearsal(t *testing.T) {
	w := newWorld(t, func(w *world) {
		w.late = make(chan struct{})
		w.cfg.Rest = sync.OnceFunc(func() { close(w.late) })
	}).start()
	if _, body := w.get("/echo", "hello"); body != "hello" {
		t.Errorf("%q", body)
	}
}

// BenchmarkRehearsal is what an agent that waits spends once.
func BenchmarkRehearsal(b *testing.B) {
	cfg := DefaultConfig()
	a := &Agent{cfg: cfg, log: cfg.Logger}
	for b.Loop() {
		if err := a.rehearse(func() bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
}
