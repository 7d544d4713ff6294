package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// machine describes what the figures were measured on.
func machine(ctx context.Context) string {
	kernel := "?"
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(b))
	}
	cpu := "?"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	congestion := "?"
	if b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control"); err == nil {
		congestion = strings.TrimSpace(string(b))
	}
	return fmt.Sprintf("%d x %s, Linux %s, TCP %s, %s, containerd %s, runc %s", runtime.NumCPU(), cpu, kernel, congestion, runtime.Version(),
		toolVersion(ctx, "containerd"), toolVersion(ctx, "runc"))
}

// toolVersion is what "TOOL --version" calls its version.
func toolVersion(ctx context.Context, tool string) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	b, err := exec.CommandContext(ctx, tool, "--version").Output()
	if err != nil {
		return "?"
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	for _, w := range f[min(1, len(f)):] {
		if strings.ContainsAny(w, "0123456789") && !strings.Contains(w, "/") {
			return w
		}
	}
	return "?"
}

// leftovers lists mounts, processes and cgroups that still name a run's directory.
func leftovers(scratch string) string {
	var left []string
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if strings.Contains(line, scratch+"/") {
				left = append(left, "mount: "+line)
			}
		}
	}
	if procs, err := os.ReadDir("/proc"); err == nil {
		for _, p := range procs {
			cmd, err := os.ReadFile("/proc/" + p.Name() + "/cmdline")
			if err == nil && strings.Contains(string(cmd), scratch+"/") {
				left = append(left, "process "+p.Name()+": "+strings.ReplaceAll(string(cmd), "\x00", " "))
			}
		}
	}
	return strings.Join(left, "\n")
}
