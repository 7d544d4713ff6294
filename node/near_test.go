package node

import (
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// nears is how many of the boxes that wait have a connection open.
func (w *world) nears() (n int) {
	w.n.mu.Lock()
	boxes := append([]*box(nil), w.n.pool.idle...)
	w.n.mu.Unlock()
	for _, b := range boxes {
		b.mu.Lock()
		if b.near != nil {
			n++
		}
		b.mu.Unlock()
	}
	return n
}

func TestFirstInvocationFindsAConnection(t *testing.T) {
	w := newWorld(t, pooled(1, 1))
	w.eventually("the one that waits is connected", func() bool { return w.nears() == 1 })
	before := w.connected.Load()
	f := w.known("f")
	body := w.message(f, 100)
	if status, h, text := w.do("POST", api.NodePathInvoke+f.target(), body); status != 200 || h.Get(api.HeaderStart) != "pooled" {
		t.Fatalf("%d %s %s", status, h.Get(api.HeaderStart), text)
	}
	if n := w.delivered.Load(); n != 1 {
		t.Errorf("%d invocations reached agents", n)
	}
	// The pool fills again meanwhile: one more connection, and no other.
	w.eventually("the next one is connected", func() bool { return w.nears() == 1 })
	if n := w.connected.Load() - before; n != 1 {
		t.Errorf("%d new connections", n)
	}
	peek, err := sealed.Peek(body)
	if err != nil {
		t.Fatal(err)
	}
	grants := 0
	w.grants.Range(func(g, _ any) bool {
		grants++
		if g != string(body[:peek.GrantLen()]) {
			t.Error("the agent was told something else than the grant")
		}
		return true
	})
	if grants != 1 {
		t.Errorf("the agent was told %d grants", grants)
	}
}

func TestConnectionThatIsOldOrBrokenIsNotUsed(t *testing.T) {
	for name, spoil := range map[string]func(*box){
		"old":    func(b *box) { b.nearAt = b.nearAt.Add(-2 * time.Minute) },
		"broken": func(b *box) { b.near.Close() },
		"gone":   func(b *box) { b.near.Close(); b.near = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pooled(1, 1))
			w.eventually("the one that waits is connected", func() bool { return w.nears() == 1 })
			w.n.mu.Lock()
			b := w.n.pool.idle[0]
			w.n.mu.Unlock()
			b.mu.Lock()
			spoil(b)
			b.mu.Unlock()
			if status, _, text := w.invoke(w.known("f")); status != 200 {
				t.Errorf("%d %s", status, text)
			}
		})
	}
}

// An admitted start is nobody's invocation yet.
func TestTicketTellsNoGrant(t *testing.T) {
	w := newWorld(t, pooled(1, 1))
	w.filled(1)
	f := w.known("f")
	if status, _, body := w.do("POST", api.NodePathAdmit+f.target(), nil); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	w.eventually("it started", func() bool { all := w.listed(f); return len(all) == 1 && all[0].State == "ready" })
	w.grants.Range(func(any, any) bool { t.Error("a grant was told"); return false })
}
