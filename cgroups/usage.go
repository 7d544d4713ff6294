package cgroups

import (
	"fmt"
	"time"
)

// Usage are a group's counters, groups inside it included.
type Usage struct {
	Memory     int64         // bytes now
	MemoryPeak int64         // bytes at most; 0 where the kernel does not tell
	CPU        time.Duration // in all
	Throttled  time.Duration // held back by the CPU quota
	PIDs       int64         // processes and threads now
}

// Usage reads the group's counters. They are read one after the other and so
// belong to slightly different moments.
func (g Group) Usage() (Usage, error) {
	var u Usage
	var err error
	if u.Memory, u.MemoryPeak, err = g.memoryUsage(); err != nil {
		return Usage{}, fmt.Errorf("read memory usage: %w", err)
	}
	if u.CPU, u.Throttled, err = g.cpuUsage(); err != nil {
		return Usage{}, fmt.Errorf("read cpu usage: %w", err)
	}
	if u.PIDs, err = g.number(PIDs, "pids.current"); err != nil {
		return Usage{}, fmt.Errorf("read pids usage: %w", err)
	}
	return u, nil
}
