package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cpuOf reads the CPU time, in microseconds, that each part of the cluster and
// this process (the caller) have used.
func cpuOf(state string) map[string]float64 {
	out := map[string]float64{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return out
	}
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil || len(cmd) == 0 {
			continue
		}
		args := strings.ReplaceAll(string(cmd), "\x00", " ")
		first, _, _ := strings.Cut(args, " ")
		part := ""
		switch base := filepath.Base(first); {
		case filepath.Base(d) == strconv.Itoa(os.Getpid()):
			part = "caller"
		case strings.Contains(args, state) && (base == "coordinator" || base == "node"):
			part = base
		case strings.HasPrefix(args, "/.faasd-sec/agent launcher"):
			part = "launcher"
		case first == "/.faasd-sec/agent":
			part = "agent"
		case first == "/fn":
			part = "function"
		default:
			continue
		}
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue
		}
		// utime and stime are fields 14 and 15, in ticks of 10 ms (proc_pid_stat(5)).
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 13 {
			continue
		}
		u, _ := strconv.ParseFloat(f[11], 64)
		s, _ := strconv.ParseFloat(f[12], 64)
		out[part] += (u + s) * 10_000
	}
	return out
}

// cpuRows tells where a warm call's CPU time goes.
func cpuRows(ctx context.Context, o options, r *report, w *world, fn string) error {
	body := bytes.Repeat([]byte("x"), 1<<10)
	before := cpuOf(w.State())
	us, _, err := latencies(ctx, o.timePerOp, 16, func() error { return w.call(ctx, w.client, apiName(fn), body) })
	if err != nil {
		return err
	}
	after := cpuOf(w.State())
	for _, part := range []string{"caller", "coordinator", "node", "agent", "function"} {
		r.add("cpu/sealed/1KiB/"+part, "us/req", "", []float64{(after[part] - before[part]) / float64(len(us))})
	}
	if len(us) == 0 {
		return fmt.Errorf("no call ended")
	}
	return nil
}
