package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"

	"github.com/prometheus/procfs"

	"github.com/faasd-sec/faasd-sec/api"
)

// FreeResources reads what the machine has left at this moment, from procfs:
// CPU in millicores (cores less the load of the last minute, never negative),
// memory in bytes (MemAvailable), processes and threads (the kernel's limit
// less those there are). What others have reserved and do not use yet is not
// subtracted: the caller knows that.
func (f FS) FreeResources() (api.Resources, error) {
	var r api.Resources
	fs, err := procfs.NewFS(f.proc)
	if err != nil {
		return r, fmt.Errorf("free resources: %w", err)
	}
	mem, err := fs.Meminfo()
	if err != nil {
		return r, fmt.Errorf("free resources: %w", err)
	}
	if mem.MemAvailableBytes == nil {
		return r, errors.New("free resources: /proc/meminfo has no MemAvailable")
	}
	load, err := fs.LoadAvg()
	if err != nil {
		return r, fmt.Errorf("free resources: %w", err)
	}
	limits, err := fs.SysctlInts("kernel.pid_max")
	if err != nil {
		return r, fmt.Errorf("free resources: %w", err)
	}
	r.Memory = int64(*mem.MemAvailableBytes)
	r.CPU = max(0, int64(goruntime.NumCPU())*1000-int64(load.Load1*1000))
	r.PIDs = int64(limits[0])
	threads, err := runningTasks(f.proc)
	if err != nil {
		return r, fmt.Errorf("free resources: %w", err)
	}
	r.PIDs = max(0, r.PIDs-threads)
	return r, nil
}

// runningTasks counts processes and threads: the figure after the slash in
// /proc/loadavg (proc_loadavg(5)).
func runningTasks(proc string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(proc, "loadavg"))
	if err != nil {
		return 0, err
	}
	var l1, l5, l15 float64
	var running, all int64
	if _, err := fmt.Sscanf(string(b), "%f %f %f %d/%d", &l1, &l5, &l15, &running, &all); err != nil {
		return 0, fmt.Errorf("loadavg: %w", err)
	}
	return all, nil
}
