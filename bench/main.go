// Command bench measures faasd-sec beside the floors it stands on, in one run
// on one machine, and writes bench/out/results.json and results.md.
//
// Every claim is a ratio to a floor of the same run. Floor and subject have
// turns, A B A B, so that what the machine does meanwhile hits both. Absolute
// figures drift with the machine, ratios drift less. The load generator shares
// the processors with what it measures. Nothing here is asserted: a run fails
// when something could not be measured, never for being slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "floor" {
		if err := serveFloor(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.BoolVar(&o.quick, "quick", false, "fewer repetitions and sizes, under two minutes")
	flag.StringVar(&o.out, "out", "bench/out", "`directory` of the figures")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` of the binaries")
	flag.StringVar(&o.only, "only", "", "run the sections whose name contains one of `these,words`")
	flag.StringVar(&o.docs, "docs", "", "write tables and plots into this `document` as well")
	flag.BoolVar(&o.render, "render", false, "measure nothing: make tables and plots of what -out holds")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends us at once
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	quick    bool
	out, bin string
	only     string
	docs     string
	render   bool
	scratch  string // a directory of this run alone
	selfPath string
}

// section is a group of rows.
type section struct {
	name string
	full bool // left out of a quick run
	run  func(*bench, context.Context) error
}

// sections are in an order in which earlier ones disturb later ones least.
func sections() []section {
	return []section{
		{name: "crypto", run: (*bench).crypto},
		{name: "scale", full: true, run: (*bench).scale},
		{name: "memory", run: (*bench).idleMemory},
		{name: "cold", run: (*bench).cold},
		{name: "rate", run: (*bench).coldRate},
		{name: "thaw", run: (*bench).thaw},
		{name: "warm", run: (*bench).warm},
		{name: "trace", run: (*bench).trace},
		{name: "async", run: (*bench).async},
		{name: "grant", run: (*bench).coldGrant},
		{name: "idle", run: (*bench).idleArrival},
		{name: "openloop", run: (*bench).openLoopRows},
		{name: "cpu", run: (*bench).cpu},
		{name: "bulk", run: (*bench).bulk},
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.render {
		r, err := readReport(o.out)
		if err != nil {
			return err
		}
		return publish(r, o)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if o.selfPath, err = os.Executable(); err != nil {
		return err
	}
	if o.scratch, err = os.MkdirTemp("", "fsb-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.scratch)) }()
	if err := os.Chmod(o.scratch, 0o711); err != nil { // programs with ids of their own pass
		return err
	}
	b := newBench(o, newReport(machine(ctx), os.Stderr))
	merr := b.measure(ctx)
	cerr := b.close()
	if left := leftovers(o.scratch); left != "" {
		cerr = errors.Join(cerr, fmt.Errorf("left behind:\n%s", left))
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), cerr)
	}
	b.compare()
	return errors.Join(merr, b.report.write(o.out), publish(b.report, o), b.report.err(), cerr)
}

// measure runs the sections. What goes wrong in one fails that section alone.
func (b *bench) measure(ctx context.Context) error {
	ran := false
	for _, s := range sections() {
		if !wanted(s, b.options) {
			continue
		}
		ran = true
		began := time.Now()
		b.place = s.name
		fmt.Fprintf(b.report.out, "== %s\n", s.name)
		err := s.run(b, ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.fail(s.name, err)
		}
		fmt.Fprintf(b.report.out, "== %s took %.1f s\n", s.name, time.Since(began).Seconds())
	}
	if !ran {
		return fmt.Errorf("-only %q names no section", b.only)
	}
	return nil
}

func wanted(s section, o options) bool {
	if o.only == "" {
		return !s.full || !o.quick
	}
	for word := range strings.SplitSeq(o.only, ",") {
		if word != "" && strings.Contains(s.name, word) {
			return true
		}
	}
	return false
}

// publish prints the tables, and puts them with the plots into the document.
func publish(r *report, o options) error {
	fmt.Print(r.markdown())
	if o.docs == "" {
		return nil
	}
	return r.document(o.docs)
}
