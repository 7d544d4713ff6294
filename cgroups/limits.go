package cgroups

import (
	"errors"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Limits are what a group may use. A nil field, or an empty IO, is unset: its
// files are neither written nor checked.
type Limits struct {
	CPU    *CPULimit
	Memory *MemoryLimit
	PIDs   *int64 // processes and threads, more than 0
	IO     []IOLimit
}

// CPULimit is a share of processor time: Quota in every Period, and a weight
// among groups that compete.
type CPULimit struct {
	Quota  time.Duration // whole microseconds, at least 1 ms
	Period time.Duration // whole microseconds, 1 ms to 1 s
	Shares int64         // v1 shares, 2 to 262144; 1024 is one core's worth
}

// MemoryLimit bounds memory. Swap is always 0: what a sealed function holds in
// memory must not reach a disk.
type MemoryLimit struct {
	Bytes int64 // rounded down to a page by the kernel
}

// IOLimit bounds the traffic with one block device; 0 is no limit.
type IOLimit struct {
	Device   Device
	ReadBps  int64 // bytes per second
	WriteBps int64 // bytes per second
}

// The kernel's bounds (Documentation/scheduler/sched-bwc.rst).
const (
	minQuota  = time.Millisecond
	maxPeriod = time.Second
)

// CPUOf is the limit for an amount of processor time in millicores, which must
// be more than 0. The period is 100 ms, or 1 s for amounts whose quota would
// fall under the kernel's least of 1 ms.
func CPUOf(millicores int64) (*CPULimit, error) {
	if millicores <= 0 {
		return nil, api.Invalid("cpu", "give at least one millicore", fmt.Sprintf("%d millicores", millicores))
	}
	period := 100 * time.Millisecond
	quota := func() time.Duration { return time.Duration(millicores) * period / 1000 }
	if quota() < minQuota {
		period = maxPeriod
	}
	return &CPULimit{Quota: quota(), Period: period, Shares: min(max(millicores*1024/1000, 2), 262144)}, nil
}

// For turns amounts into limits of CPU, memory and pids, all of which must be
// more than 0, and of I/O with device where r asks for any.
func For(r api.Resources, device Device) (Limits, error) {
	cpu, err := CPUOf(r.CPU)
	if err != nil {
		return Limits{}, err
	}
	if r.Memory <= 0 {
		return Limits{}, api.Invalid("memory", "give a limit in bytes", fmt.Sprintf("%d bytes", r.Memory))
	}
	if r.PIDs <= 0 {
		return Limits{}, api.Invalid("pids", "give at least 1", fmt.Sprintf("%d processes", r.PIDs))
	}
	if r.ReadBps < 0 || r.WriteBps < 0 {
		return Limits{}, api.Invalid("io", "leave it out for no limit", "a rate is negative")
	}
	l := Limits{CPU: cpu, Memory: &MemoryLimit{Bytes: r.Memory}, PIDs: &r.PIDs}
	if r.ReadBps > 0 || r.WriteBps > 0 {
		if device == (Device{}) {
			return Limits{}, api.Invalid("io", "leave read_bps and write_bps out", "no block device to limit is known on this host")
		}
		l.IO = []IOLimit{{Device: device, ReadBps: r.ReadBps, WriteBps: r.WriteBps}}
	}
	return l, nil
}

// Apply writes the limits that are set. Where it fails, some may have been
// written already.
func (g Group) Apply(l Limits) error {
	if l.CPU != nil {
		if err := g.applyCPU(*l.CPU); err != nil {
			return fmt.Errorf("limit cpu of %s: %w", g.path, err)
		}
	}
	if l.Memory != nil {
		if err := g.applyMemory(*l.Memory); err != nil {
			return fmt.Errorf("limit memory of %s: %w", g.path, err)
		}
	}
	if l.PIDs != nil {
		if err := g.applyPIDs(*l.PIDs); err != nil {
			return fmt.Errorf("limit pids of %s: %w", g.path, err)
		}
	}
	for _, io := range l.IO {
		if err := g.applyIO(io); err != nil {
			return fmt.Errorf("limit io of %s: %w", g.path, err)
		}
	}
	return nil
}

// Verify reads every limit that is set back from the kernel and joins an error
// for each that differs; errors.As finds the *Mismatch.
func (g Group) Verify(l Limits) error {
	var errs []error
	if l.CPU != nil {
		errs = append(errs, g.verifyCPU(*l.CPU))
	}
	if l.Memory != nil {
		errs = append(errs, g.verifyMemory(*l.Memory))
	}
	if l.PIDs != nil {
		errs = append(errs, g.verifyPIDs(*l.PIDs))
	}
	for _, io := range l.IO {
		errs = append(errs, g.verifyIO(io))
	}
	return errors.Join(errs...)
}
