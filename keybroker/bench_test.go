package keybroker_test

import (
	"testing"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// BenchmarkRelease is what a cold start waits for at the broker: read and open
// the vault's file, verify the descriptor, seal the keys. Evidence costs extra.
func BenchmarkRelease(b *testing.B) {
	r := newRig(b, func(r *rig) { r.rate = keybroker.Rate{PerSecond: 1e9, Burst: 1e9} })
	d := r.descriptor(1)
	r.mustDeposit(d)
	rev, err := d.Revision()
	if err != nil {
		b.Fatal(err)
	}
	s := r.sandbox(rev)
	st, err := cbor.Marshal(s.st)
	if err != nil {
		b.Fatal(err)
	}
	agent := sealed.Digest(sm3.Sum([]byte("agent")))
	req := api.ReleaseRequest{Function: s.fn, Revision: s.rev.String(), Statement: st, Evidence: []api.Evidence{{Type: "word", Data: []byte("n1 " + agent.String())}}}
	for b.Loop() {
		if _, err := r.b.Release(b.Context(), "n1", req); err != nil {
			b.Fatal(err)
		}
	}
}
