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
	"time"
)

// goSamples are what a package's benchmarks reported, by benchmark and unit.
type goSamples map[[2]string][]float64

func (s goSamples) get(bench, unit string) []float64 { return s[[2]string{bench, unit}] }

// benchLine is one line of a Go benchmark's output: name, count, then pairs of
// value and unit.
var benchLine = regexp.MustCompile(`^(Benchmark\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// parse adds what one run of a test binary printed.
func (s goSamples) parse(out string) error {
	for line := range strings.SplitSeq(out, "\n") {
		m := benchLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		f := strings.Fields(m[2])
		for i := 0; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			k := [2]string{m[1], f[i+1]}
			s[k] = append(s[k], v)
		}
	}
	return nil
}

// goBench runs a package's benchmarks rounds times over, each for a while.
func (b *bench) goBench(ctx context.Context, pkg, pattern string, rounds int, each time.Duration) (goSamples, error) {
	bin, err := b.testBinary(ctx, pkg)
	if err != nil {
		return nil, err
	}
	s := goSamples{}
	for range rounds {
		cmd := exec.CommandContext(ctx, bin, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", each.String(), "-test.timeout", "5m")
		cmd.Dir = pkg
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("benchmarks %s of %s: %w\n%s", pattern, pkg, err, out.String())
		}
		if err := s.parse(out.String()); err != nil {
			return nil, fmt.Errorf("benchmarks of %s: %w", pkg, err)
		}
	}
	return s, nil
}

func goTestBuild(ctx context.Context, out, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the benchmarks of %s: %w\n%s", pkg, err, b)
	}
	return nil
}
