package main

import (
	"context"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func apiName(s string) api.FunctionName { return api.FunctionName(s) }

// coldRows measures first invocations: sandbox, keys, function, reply. The
// floor, bare containerd and runc from create to first byte, comes from the
// runtime's own benchmark in the same run.
func coldRows(ctx context.Context, o options, r *report) error {
	if err := goBench(ctx, o, r, "./runtime/containerd", "FirstByte",
		target{"BenchmarkBareContainerdToFirstByte", "ms-median", "cold/runc-floor/go", ""},
		target{"BenchmarkCreateToFirstByte", "ms-median", "cold/sandbox/go", "cold/runc-floor/go"}); err != nil {
		return err
	}
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	defer w.close()
	n := 20
	if o.quick {
		n = 6
	}
	var ms []float64
	for i := range n {
		fn, err := w.deploy(ctx, fmt.Sprintf("cold-%d", i))
		if err != nil {
			return err
		}
		t := time.Now()
		if err := w.call(ctx, w.client, fn, []byte("hello")); err != nil {
			return err
		}
		took := float64(time.Since(t).Microseconds()) / 1000
		if i > 0 { // the first one pulls the image
			ms = append(ms, took)
		}
		if err := w.client.Remove(ctx, fn); err != nil {
			return err
		}
	}
	r.add("cold/sealed-reply/go", "ms", "cold/runc-floor/go", ms)
	return nil
}
