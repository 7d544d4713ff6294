package anomaly_test

import (
	"context"
	"testing"

	"github.com/faasd-sec/faasd-sec/anomaly"
)

func BenchmarkAppend(b *testing.B) {
	r := newRig(b, func(c *anomaly.Config) {
		d := anomaly.DefaultConfig()
		c.SegmentBytes, c.CheckpointEvents, c.FlushEvery, c.CheckpointAge, c.QueueBytes = d.SegmentBytes, d.CheckpointEvents, d.FlushEvery, d.CheckpointAge, 64<<20
	})
	e := sample(1)
	b.ReportAllocs()
	for b.Loop() {
		r.log.Append(e)
	}
}

func BenchmarkVerify(b *testing.B) {
	const n = 50_000
	r := newRig(b, func(c *anomaly.Config) {
		d := anomaly.DefaultConfig()
		c.SegmentBytes, c.CheckpointEvents, c.QueueBytes = d.SegmentBytes, d.CheckpointEvents, 64<<20
	})
	e := sample(1)
	for range n {
		r.log.Append(e)
	}
	r.close()
	for b.Loop() {
		if rep, err := anomaly.Verify(context.Background(), r.cfg.Dir, r.key, nil); err != nil || !rep.OK || rep.Events != n {
			b.Fatalf("%+v, %v", rep, err)
		}
	}
	b.ReportMetric(n/(b.Elapsed().Seconds()/float64(b.N)), "events/s")
}
