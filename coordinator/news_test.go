package coordinator

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// A load on a reply that the caller gets is read once the caller has it; the same
// one again is not read.
func TestLoadsOfRepliesAreReadAfterThem(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes["node-1"]
	plain := *n.invoke.Load()
	var seq atomic.Uint64
	seq.Store(1)
	n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
		b, _ := json.Marshal(api.NodeLoad{Node: "node-1", Epoch: 1, Seq: seq.Load()})
		rw.Header().Set(api.HeaderLoad, string(b))
		plain(rw, r)
	})
	seen := func() (seqs []uint64) {
		w.mesh.mu.Lock()
		defer w.mesh.mu.Unlock()
		for _, l := range w.mesh.observed {
			seqs = append(seqs, l.Seq)
		}
		return seqs
	}
	for range 3 {
		if a := w.send(w.message(10, time.Minute)); a.status != 200 {
			t.Fatal(a.status, a.err)
		}
	}
	w.eventually("the first load is read", func() bool { return len(seen()) == 1 })
	seq.Store(7)
	if a := w.send(w.message(1<<20, time.Minute)); a.status != 200 {
		t.Fatal(a.status, a.err)
	}
	w.eventually("the load of a reply that flows is read", func() bool { s := seen(); return len(s) == 2 && s[1] == 7 })
	w.rest()
}
