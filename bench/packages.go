package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// benchLine is one line of `go test -bench`.
var benchLine = regexp.MustCompile(`^(Benchmark\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// target says which metric of a benchmark becomes which row.
type target struct{ bench, unit, row, floor string }

// goBench runs a package's benchmarks several times and adds the targets' rows
// in their order.
func goBench(ctx context.Context, o options, r *report, pkg, pattern string, targets ...target) error {
	count, benchtime := "5", "1s"
	if o.quick {
		count, benchtime = "3", "200ms"
	}
	if o.once {
		count = "1"
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", pattern, "-count", count, "-benchtime", benchtime, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "REQUIRE_ALL=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go test -bench %s %s: %w\n%s", pattern, pkg, err, out.String())
	}
	samples := map[[2]string][]float64{}
	for line := range strings.SplitSeq(out.String(), "\n") {
		m := benchLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		f := strings.Fields(m[2])
		for i := 0; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				k := [2]string{m[1], f[i+1]}
				samples[k] = append(samples[k], v)
			}
		}
	}
	for _, t := range targets {
		unit, scale := t.unit, 1.0
		switch t.unit { // go test counts in ns
		case "us":
			unit, scale = "ns/op", 1e-3
		case "ms":
			unit, scale = "ns/op", 1e-6
		}
		got := samples[[2]string{t.bench, unit}]
		if len(got) == 0 {
			return fmt.Errorf("%s: no %s of %s in:\n%s", pkg, unit, t.bench, out.String())
		}
		for i := range got {
			got[i] *= scale
		}
		r.add(t.row, strings.TrimSuffix(t.unit, "-median"), t.floor, got)
	}
	return nil
}

// cryptoRows compare sealing and opening with SM4-GCM alone, in one process.
func cryptoRows(ctx context.Context, o options, r *report) error {
	var ts []target
	for _, size := range []string{"1KiB", "64KiB", "1MiB"} {
		seal, open := "floor/sm4-gcm-seal/"+size, "floor/sm4-gcm-open/"+size
		ts = append(ts,
			target{"BenchmarkFloor/seal/" + size, "MB/s", seal, ""},
			target{"BenchmarkFloor/open/" + size, "MB/s", open, ""},
			target{"BenchmarkSeal/stream/" + size, "MB/s", "bulk/sealed/" + size, seal},
			target{"BenchmarkOpen/warm/" + size, "MB/s", "bulk/opened/" + size, open})
	}
	ts = append(ts,
		target{"BenchmarkSeal/append/1KiB", "us", "seal/cached-grant/1KiB", ""},
		target{"BenchmarkSeal/cold/1KiB", "us", "seal/new-grant/1KiB", ""},
		target{"BenchmarkOpen/warm/1KiB", "us", "open/cached-grant/1KiB", ""},
		target{"BenchmarkOpen/cold/1KiB", "us", "open/new-grant/1KiB", ""},
		target{"BenchmarkPeakHeap", "MiB-peak", "memory/heap-256MiB-through-seal-and-open", ""})
	return goBench(ctx, o, r, "./sealed/unseal", ".", ts...)
}

// scaleRows are placement and gossip at growing sizes.
func scaleRows(ctx context.Context, o options, r *report) error {
	var ts []target
	for _, n := range []string{"10", "1000", "10000"} {
		for _, k := range []string{"warm", "cold"} {
			ts = append(ts, target{"BenchmarkPick/index/" + k + "/nodes=" + n, "us", "placement/" + k + "/" + n, ""})
		}
	}
	if err := goBench(ctx, o, r, "./placement", ".", ts...); err != nil {
		return err
	}
	ts = nil
	for _, n := range []string{"10", "100", "1000"} {
		ts = append(ts,
			target{"BenchmarkMesh/members=" + n, "s-converge", "gossip/converge/" + n, ""},
			target{"BenchmarkMesh/members=" + n, "B/member/s", "gossip/bytes/" + n, ""})
	}
	o.once = true // a mesh of 1,000 members takes half a minute to form
	return goBench(ctx, o, r, "./gossip", "BenchmarkMesh", ts...)
}
