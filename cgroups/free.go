package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/faasd-sec/faasd-sec/api"
)

// Machine is what a machine has and what of it is free at one moment. Nothing
// is subtracted for reservations: who reserves knows them.
type Machine struct {
	Capacity api.Resources // CPU, memory and pids in all
	Free     api.Resources // CPU that is idle by load, memory available without swapping, pids left
	Load1    float64       // runnable tasks, mean of the last minute
}

// Machine reads the machine's capacity and what is free from /proc.
func (f FS) Machine() (Machine, error) {
	p, err := procfs.NewFS(f.proc)
	if err != nil {
		return Machine{}, fmt.Errorf("read the machine's resources: %w", err)
	}
	mem, err := p.Meminfo()
	if err != nil {
		return Machine{}, fmt.Errorf("read the machine's memory: %w", err)
	}
	if mem.MemTotalBytes == nil || mem.MemAvailableBytes == nil {
		return Machine{}, fmt.Errorf("read the machine's memory: %s lacks MemTotal or MemAvailable (Linux 3.14)", filepath.Join(f.proc, "meminfo"))
	}
	load, err := p.LoadAvg()
	if err != nil {
		return Machine{}, fmt.Errorf("read the machine's load: %w", err)
	}
	tasks, err := f.tasks()
	if err != nil {
		return Machine{}, err
	}
	most, err := f.maxTasks()
	if err != nil {
		return Machine{}, err
	}
	// NumCPU is the processors that this process may use.
	cpu := int64(goruntime.NumCPU()) * 1000
	m := Machine{
		Capacity: api.Resources{CPU: cpu, Memory: int64(*mem.MemTotalBytes), PIDs: most},
		Load1:    load.Load1,
	}
	m.Free = api.Resources{
		CPU:    max(cpu-int64(load.Load1*1000), 0),
		Memory: int64(*mem.MemAvailableBytes),
		PIDs:   max(most-tasks, 0),
	}
	return m, nil
}

// maxTasks is how many tasks there can be: each needs a pid, and there is a
// limit on threads besides.
func (f FS) maxTasks() (int64, error) {
	most := int64(-1)
	for _, name := range []string{"pid_max", "threads-max"} {
		path := filepath.Join(f.proc, "sys/kernel", name)
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, fmt.Errorf("read the machine's pids: %w", err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		if most < 0 || n < most {
			most = n
		}
	}
	return most, nil
}

// tasks counts the tasks there are: the fourth field of loadavg is
// "runnable/all" (proc_loadavg(5)).
func (f FS) tasks() (int64, error) {
	path := filepath.Join(f.proc, "loadavg")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the machine's tasks: %w", err)
	}
	fields := strings.Fields(string(b))
	if len(fields) < 4 {
		return 0, fmt.Errorf("%s: %q has no count of tasks", path, b)
	}
	_, all, _ := strings.Cut(fields[3], "/")
	n, err := strconv.ParseInt(all, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
