package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memoryRows reads the proportional set size of what an idle sandbox costs
// beside the function: agent, launcher and containerd's shim.
func memoryRows(ctx context.Context, r *report, w *world) error {
	const n = 4
	for i := range n {
		fn, err := w.deploy(ctx, fmt.Sprintf("idle-%d", i))
		if err != nil {
			return err
		}
		if err := w.call(ctx, w.client, fn, []byte("x")); err != nil {
			return err
		}
	}
	sums := map[string][]float64{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil || len(cmd) == 0 {
			continue
		}
		args := strings.Split(string(cmd), "\x00")
		kind := ""
		switch {
		case args[0] == "/.faasd-sec/agent" && len(args) > 1 && args[1] == "launcher":
			kind = "launcher"
		case args[0] == "/.faasd-sec/agent":
			kind = "agent"
		case strings.HasPrefix(filepath.Base(args[0]), "containerd-shim"):
			kind = "shim"
		default:
			continue
		}
		if kb, ok := pss(d); ok {
			sums[kind] = append(sums[kind], kb/1024)
		}
	}
	var each []float64
	for i := range sums["agent"] {
		t := sums["agent"][i]
		for _, k := range []string{"launcher", "shim"} {
			if i < len(sums[k]) {
				t += sums[k][i]
			}
		}
		each = append(each, t)
	}
	for _, k := range []string{"agent", "launcher", "shim"} {
		r.add("memory/idle-sandbox/"+k, "MiB", "", sums[k])
	}
	r.add("memory/idle-sandbox", "MiB", "", each)
	return nil
}

// pss is a process's proportional set size in KiB (proc_pid_smaps(5)).
func pss(dir string) (float64, bool) {
	b, err := os.ReadFile(dir + "/smaps_rollup")
	if err != nil {
		return 0, false
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			f := strings.Fields(rest)
			if len(f) > 0 {
				v, err := strconv.ParseFloat(f[0], 64)
				return v, err == nil
			}
		}
	}
	return 0, false
}
