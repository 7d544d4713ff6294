package opener_test

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkOpen asks the process over its socket: bounds and a sealed manifest
// with each call, each manifest under a grant of its own.
func BenchmarkOpen(b *testing.B) {
	for _, c := range []struct {
		name    string
		callers int
	}{{"one", 1}, {"eight", 8}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b)
			blob := w.deposit()
			messages := make([][]byte, 64)
			for i := range messages {
				messages[i] = w.seal(w.wish(), w.caller, nil)
			}
			took := make([]time.Duration, b.N)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range c.callers {
				wg.Go(func() {
					for {
						i := next.Add(1) - 1
						if i >= int64(b.N) {
							return
						}
						begun := time.Now()
						if _, err := w.client.Open(b.Context(), w.s, blob, messages[i%int64(len(messages))]); err != nil {
							b.Error(err)
							return
						}
						took[i] = time.Since(begun)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "open/s")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
