// Command bench measures faasd-sec beside the floors it stands on, in one run
// on one machine, and writes bench/out/results.json and results.md.
//
// Every claim is a ratio to a floor of the same run: absolute figures drift
// with the machine, ratios drift less. The load generator shares the
// processors with what it measures, and says so.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "floor" {
		if err := serveFloor(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.BoolVar(&o.quick, "quick", false, "fewer repetitions, under two minutes")
	flag.StringVar(&o.out, "out", "bench/out", "`directory` of results.json and results.md")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` of the binaries")
	flag.StringVar(&o.only, "only", "", "run sections whose name contains `this`")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	quick     bool
	once      bool // each package benchmark a single time
	out, bin  string
	only      string
	function  string // the benchmark function's binary
	scratch   string
	selfPath  string
	timePerOp time.Duration
}

// section is a group of rows.
type section struct {
	name string
	run  func(context.Context, options, *report) error
}

func run(ctx context.Context, o options) error {
	var err error
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if o.selfPath, err = os.Executable(); err != nil {
		return err
	}
	if o.scratch, err = os.MkdirTemp("", "fsb-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.scratch)
	o.timePerOp = 3 * time.Second
	if o.quick {
		o.timePerOp = 700 * time.Millisecond
	}
	o.function = filepath.Join(o.scratch, "fn")
	if err := goBuild(ctx, o.function, "./bench/function"); err != nil {
		return err
	}
	r := &report{Machine: machine()}
	for _, s := range []section{
		{"crypto", cryptoRows}, {"scale", scaleRows}, {"floors and cluster", clusterRows}, {"cold", coldRows},
	} {
		if o.only != "" && !strings.Contains(s.name, o.only) {
			continue
		}
		fmt.Fprintf(os.Stderr, "== %s\n", s.name)
		if err := s.run(ctx, o, r); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := r.write(o.out); err != nil {
		return err
	}
	fmt.Print(r.markdown())
	return nil
}

// machine describes what the figures were measured on.
func machine() string {
	b, _ := os.ReadFile("/proc/version")
	kernel := strings.Fields(string(b))
	v := "?"
	if len(kernel) > 2 {
		v = kernel[2]
	}
	cpu := "?"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if k, val, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(val)
				break
			}
		}
	}
	return fmt.Sprintf("%d x %s, Linux %s, %s", runtime.NumCPU(), cpu, v, runtime.Version())
}
