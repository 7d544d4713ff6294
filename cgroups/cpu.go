package cgroups

import (
	"fmt"
	"strconv"
	"time"
)

func (g Group) applyCPU(l CPULimit) error {
	if l.Quota < minQuota || l.Period < minQuota || l.Period > maxPeriod {
		return fmt.Errorf("quota %v in %v is out of the kernel's range", l.Quota, l.Period)
	}
	quota, period := micros(l.Quota), micros(l.Period)
	if g.fs.mode == V2 {
		if err := g.change(CPU, "cpu.weight", strconv.FormatInt(weight(l.Shares), 10)); err != nil {
			return err
		}
		return g.change(CPU, "cpu.max", quota+" "+period)
	}
	if err := g.change(CPU, "cpu.shares", strconv.FormatInt(l.Shares, 10)); err != nil {
		return err
	}
	if err := g.change(CPU, "cpu.cfs_period_us", period); err != nil {
		return err
	}
	return g.change(CPU, "cpu.cfs_quota_us", quota)
}

func (g Group) verifyCPU(l CPULimit) error {
	quota, period := micros(l.Quota), micros(l.Period)
	if g.fs.mode == V2 {
		if err := g.expect(CPU, "cpu.max", quota+" "+period); err != nil {
			return err
		}
		return g.expect(CPU, "cpu.weight", strconv.FormatInt(weight(l.Shares), 10))
	}
	if err := g.expect(CPU, "cpu.cfs_quota_us", quota); err != nil {
		return err
	}
	if err := g.expect(CPU, "cpu.cfs_period_us", period); err != nil {
		return err
	}
	return g.expect(CPU, "cpu.shares", strconv.FormatInt(l.Shares, 10))
}

// weight maps v1 shares, 2 to 262144, onto v2 weights, 1 to 10000, the way OCI
// runtimes do, so that a group made by one of them and checked here agrees.
func weight(shares int64) int64 { return 1 + ((shares-2)*9999)/262142 }

func micros(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }

// cpuUsage is the processor time used in all, and the time the group was held
// back by its quota.
func (g Group) cpuUsage() (used, throttled time.Duration, err error) {
	if g.fs.mode == V2 {
		u, err := g.field(CPU, "cpu.stat", "usage_usec")
		if err != nil {
			return 0, 0, err
		}
		t, err := g.field(CPU, "cpu.stat", "throttled_usec")
		if err != nil {
			return 0, 0, err
		}
		return time.Duration(u) * time.Microsecond, time.Duration(t) * time.Microsecond, nil
	}
	u, err := g.number(CPUAcct, "cpuacct.usage")
	if err != nil {
		return 0, 0, err
	}
	t, err := g.field(CPU, "cpu.stat", "throttled_time")
	if err != nil {
		return 0, 0, err
	}
	return time.Duration(u), time.Duration(t), nil
}
