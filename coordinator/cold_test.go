package coordinator

import (
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Whoever has seen a public key can name it in a grant.
func TestAGrantThatItsSenderDidNotSignStartsNothing(t *testing.T) {
	w := newWorld(t, 1)
	forge := func(size int) []byte {
		msg := w.message(size, time.Minute)
		p, err := sealed.Peek(msg)
		if err != nil {
			t.Fatal(err)
		}
		msg[p.Len-125-1] ^= 1 // the last byte of the signature
		return msg
	}
	for _, size := range []int{10, 300_000} {
		a := w.send(forge(size))
		if a.err == nil && a.code != api.Code(sealed.CodeSignature) || w.offered() != 0 || w.nodes["node-1"].admitted.Load() != 0 {
			t.Errorf("%d bytes: %d %s %v", size, a.status, a.body, a.err)
		}
	}
	if a := w.send(w.message(10, time.Minute)); a.status != 200 {
		t.Errorf("a signed one: %d %s", a.status, a.body)
	}
	// The agent of a warm sandbox decides by itself.
	before := w.offered()
	w.mesh.set("node-1", func(v *api.NodeView) { v.Load.Warm = map[string]int{api.RevisionKey(w.rev.String()): 1} })
	if a := w.send(forge(10)); w.offered() != before+1 {
		t.Errorf("%d %s", a.status, a.body)
	}
	w.rest()
}
