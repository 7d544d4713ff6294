package monitor

import (
	"log/slog"
	"syscall"
	"testing"
	"time"
)

// BenchmarkSample takes samples of 100 tasks in cgroups of their own, each with a
// process, and reports what share of one processor that costs at the default
// interval: four of five samples are fast ones and one looks at file systems too.
func BenchmarkSample(b *testing.B) {
	const tasks = 100
	w := newWorld(b)
	for range tasks {
		w.start("sleep", someLimits, syscall.CLONE_NEWNS)
	}
	cfg := DefaultConfig()
	cfg.Tasks, cfg.Anomalies = w.list, w.log
	now := time.Now()
	cfg.Now = func() time.Time { return now }
	m, err := New(cfg, w.fs, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer m.close()
	m.sample() // opens
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(cfg.Every)
		m.sample()
	}
	each := (used() - before) / time.Duration(b.N)
	b.ReportMetric(100*each.Seconds()/cfg.Every.Seconds(), "%cpu/100tasks")
	if got := m.Totals(); got.Tasks != tasks || got.Failures > 0 {
		b.Fatalf("%+v", got)
	}
}
