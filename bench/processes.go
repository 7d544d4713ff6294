package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is one process of the cluster under measurement. Others on this
// machine, another cluster's too, are not seen.
type process struct {
	pid     int
	part    string   // coordinator, keybroker, node, containerd, shim, agent, launcher, function
	sandbox string   // of agent, launcher and function
	args    []string // of the others
}

func (p process) dir() string { return "/proc/" + strconv.Itoa(p.pid) }

// processesOf lists a cluster's processes: daemons by the state directory in
// their arguments, what runs in sandboxes by its cgroup, shims by the
// containerd namespace.
func processesOf(state string) ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var daemons, others []process
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil || len(cmd) == 0 {
			continue // ended, or the kernel's own
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		p := process{pid: pid, args: strings.Split(strings.TrimRight(string(cmd), "\x00"), "\x00")}
		p.part = filepath.Base(p.args[0])
		known := slices.Contains([]string{"coordinator", "keybroker", "node", "containerd"}, p.part)
		if known && slices.ContainsFunc(p.args, func(a string) bool { return strings.HasPrefix(a, state+"/") }) {
			daemons = append(daemons, p)
		} else {
			others = append(others, p)
		}
	}
	var namespaces []string
	for _, p := range daemons {
		if ns := p.flag("-containerd-namespace"); p.part == "node" && ns != "" {
			namespaces = append(namespaces, ns)
		}
	}
	for _, p := range others {
		if p.classify(namespaces) {
			daemons = append(daemons, p)
		}
	}
	return daemons, nil
}

// classify says what a process is if it belongs to one of the namespaces.
func (p *process) classify(namespaces []string) bool {
	if strings.HasPrefix(p.part, "containerd-shim") {
		p.part = "shim"
		return slices.ContainsFunc(p.args, func(a string) bool { return slices.Contains(namespaces, a) })
	}
	b, err := os.ReadFile(p.dir() + "/cgroup")
	if err != nil {
		return false
	}
	for _, ns := range namespaces {
		_, rest, ok := strings.Cut(string(b), "/"+ns+"/")
		if !ok {
			continue
		}
		rest, _, _ = strings.Cut(rest, "\n")
		p.sandbox, _, _ = strings.Cut(rest, "/")
		switch {
		case p.args[0] == "/.faasd-sec/agent" && len(p.args) > 1:
			p.part = "launcher"
		case p.args[0] == "/.faasd-sec/agent":
			p.part = "agent"
		default:
			p.part = "function"
		}
		return true
	}
	return false
}

// flag is the value of a daemon's flag, "" if it has none.
func (p process) flag(name string) string {
	for i, a := range p.args {
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
		if a == name && i+1 < len(p.args) {
			return p.args[i+1]
		}
	}
	return ""
}

// cpu is the CPU time, in microseconds, that a process's threads have used: the
// scheduler's own nanoseconds where the kernel tells them, else ticks of 10 ms
// (proc_pid_schedstat and proc_pid_stat(5)).
func (p process) cpu() float64 {
	files, err := filepath.Glob(p.dir() + "/task/*/schedstat")
	if err == nil && len(files) > 0 {
		sum := 0.0
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue // the thread ended
			}
			ns, _, _ := strings.Cut(string(b), " ")
			if v, err := strconv.ParseFloat(ns, 64); err == nil {
				sum += v / 1e3
			}
		}
		return sum
	}
	b, err := os.ReadFile(p.dir() + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64) // the kernel writes numbers
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) * 10_000
}

// memory reads a field of a process's memory figures, in MiB: "Pss" of
// smaps_rollup, or "VmHWM", the most it ever held resident, of status.
func (p process) memory(field string) (float64, error) {
	file := map[string]string{"Pss": "/smaps_rollup", "VmHWM": "/status"}[field]
	b, err := os.ReadFile(p.dir() + file)
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				kb, err := strconv.ParseFloat(f[0], 64)
				return kb / 1024, err
			}
		}
	}
	return 0, fmt.Errorf("no %s in %s%s", field, p.dir(), file)
}

// resetPeak makes VmHWM start anew (proc_pid_clear_refs(5)).
func (p process) resetPeak() error {
	return os.WriteFile(p.dir()+"/clear_refs", []byte("5"), 0)
}

// shimsOf lists the shims of one containerd namespace.
func shimsOf(namespace string) ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(cmd), "\x00"), "\x00")
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && slices.Contains(args, namespace) {
			if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
				out = append(out, process{pid: pid, part: "shim", args: args})
			}
		}
	}
	return out, nil
}
