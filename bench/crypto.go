package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// crypto compares sealing and opening with gmsm's SM4-GCM alone. The package's
// own benchmarks run a short while each, over and over, so that floor and
// subject take turns.
func (b *bench) crypto(ctx context.Context) error {
	rounds, each := b.scaled(15, 7), 60*time.Millisecond
	if b.quick {
		each = 20 * time.Millisecond
	}
	s, err := b.goBench(ctx, "./sealed/unseal", "^Benchmark(Floor|Seal|Open)$", rounds, each)
	if err != nil {
		return err
	}
	for _, size := range []string{"1KiB", "64KiB", "1MiB"} {
		rawSeal, rawOpen := s.get("BenchmarkFloor/seal/"+size, "MB/s"), s.get("BenchmarkFloor/open/"+size, "MB/s")
		seal, open := s.get("BenchmarkSeal/stream/"+size, "MB/s"), s.get("BenchmarkOpen/warm/"+size, "MB/s")
		b.add("floor/sm4-gcm/"+size, "MB/s", "", inSeries(rawSeal, rawOpen))
		b.add("bulk/sealed/"+size, "MB/s", "floor/sm4-gcm/"+size, inSeries(seal, open))
		b.add("floor/sm4-gcm-seal/"+size, "MB/s", "", rawSeal)
		b.add("bulk/seal-only/"+size, "MB/s", "floor/sm4-gcm-seal/"+size, seal)
		b.add("floor/sm4-gcm-open/"+size, "MB/s", "", rawOpen)
		b.add("bulk/open-only/"+size, "MB/s", "floor/sm4-gcm-open/"+size, open)
	}
	for _, x := range []struct{ row, bench string }{
		{"crypto/seal/cached-grant/1KiB", "BenchmarkSeal/append/1KiB"}, {"crypto/seal/new-grant/1KiB", "BenchmarkSeal/cold/1KiB"},
		{"crypto/open/cached-grant/1KiB", "BenchmarkOpen/warm/1KiB"}, {"crypto/open/new-grant/1KiB", "BenchmarkOpen/cold/1KiB"},
	} {
		b.add(x.row, "us", "", times(s.get(x.bench, "ns/op"), 1e-3))
	}
	heap, err := b.goBench(ctx, "./sealed/unseal", "^BenchmarkPeakHeap$", b.scaled(3, 1), time.Millisecond)
	if err != nil {
		return err
	}
	b.add("memory/heap-256MiB-through-seal-and-open", "MiB", "", heap.get("BenchmarkPeakHeap", "MiB-peak"))
	return nil
}

// inSeries is the throughput of one step after the other, of paired samples.
func inSeries(a, b []float64) []float64 {
	out := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		out = append(out, 1/(1/a[i]+1/b[i]))
	}
	return out
}

// times scales samples.
func times(s []float64, by float64) []float64 {
	out := make([]float64, len(s))
	for i, v := range s {
		out[i] = v * by
	}
	return out
}

// scale measures placement and gossip at growing sizes, and what watching costs.
func (b *bench) scale(ctx context.Context) error {
	s, err := b.goBench(ctx, "./placement", "^BenchmarkPick$", b.scaled(5, 2), 200*time.Millisecond)
	if err != nil {
		return err
	}
	for _, n := range []int{10, 1000, 10000} {
		for _, kind := range []string{"warm", "cold"} {
			b.add(fmt.Sprintf("placement/%s/%d", kind, n), "us", "", times(s.get(fmt.Sprintf("BenchmarkPick/index/%s/nodes=%d", kind, n), "ns/op"), 1e-3))
		}
	}
	if s, err = b.goBench(ctx, "./placement", "^BenchmarkDecisions$", b.scaled(5, 2), time.Second); err != nil {
		return err
	}
	b.add("placement/decisions/10k", "1/s", "", s.get("BenchmarkDecisions/pack/nodes=10000", "decisions/s"))
	b.add("placement/decisions/10k/p99", "us", "", s.get("BenchmarkDecisions/pack/nodes=10000", "p99-us"))
	if s, err = b.goBench(ctx, "./anomaly", "^BenchmarkAppend$", b.scaled(5, 2), 200*time.Millisecond); err != nil {
		return err
	}
	b.add("audit/append", "us", "", times(s.get("BenchmarkAppend", "ns/op"), 1e-3))
	if s, err = b.goBench(ctx, "./monitor", "^BenchmarkSample$", b.scaled(5, 2), 200*time.Millisecond); err != nil {
		return err
	}
	b.add("monitor/cpu-per-100-tasks", "%", "", s.get("BenchmarkSample", "%cpu/100tasks"))
	// Once: a mesh of 1,000 members takes half a minute to form.
	if s, err = b.goBench(ctx, "./gossip", "^BenchmarkMesh$", 1, 200*time.Millisecond); err != nil {
		return err
	}
	for _, n := range []int{10, 100, 1000} {
		name := "BenchmarkMesh/members=" + strconv.Itoa(n)
		b.add(fmt.Sprintf("gossip/converge/%d", n), "s", "", s.get(name, "s-converge"))
		b.add(fmt.Sprintf("gossip/bytes/%d", n), "B/member/s", "", s.get(name, "B/member/s"))
	}
	return nil
}

// testBinary compiles a package's benchmarks.
func (b *bench) testBinary(ctx context.Context, pkg string) (string, error) {
	out := filepath.Join(b.scratch, filepath.Base(pkg)+".test")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	return out, goTestBuild(ctx, out, pkg)
}
