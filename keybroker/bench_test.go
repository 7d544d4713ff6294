package keybroker_test

import (
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/keybroker"
)

// BenchmarkRelease is what a cold start waits for at the broker, but for the
// network: with evidence that it was shown while the sandbox waited, and with
// evidence that it sees for the first time.
func BenchmarkRelease(b *testing.B) {
	unlimited := func(r *rig) { r.rate = keybroker.Rate{PerSecond: 1e9, Burst: 1e9} }
	b.Run("shown", func(b *testing.B) {
		f := newFleet(b, unlimited)
		req := f.asks("n1", f.d)
		if err := f.attest("n1", req); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := f.release("n1", req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		f := newFleet(b, unlimited)
		asks := make([]api.ReleaseRequest, 1024)
		for i := range asks {
			asks[i] = f.asks("n1", f.d)
		}
		for i := 0; b.Loop(); i++ { // each was displaced by the time it comes again
			if err := f.release("n1", asks[i%len(asks)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}
