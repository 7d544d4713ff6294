package monitor

import (
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// alarm is one threshold of one task, or of the machine.
type alarm struct {
	since time.Time        // passed since then; zero where it is not
	noted time.Time        // last note of this passing
	base  cgroups.Counters // of when it was passed
}

// alarms are by task, "" for the machine, and by what they are about.
type alarms map[string]map[string]*alarm

func (a alarms) of(id, what string) *alarm {
	if a[id] == nil {
		a[id] = map[string]*alarm{}
	}
	if a[id][what] == nil {
		a[id][what] = &alarm{}
	}
	return a[id][what]
}

func (a alarms) forget(id string) { delete(a, id) }

// step tells an alarm whether its threshold is passed now, and reports whether
// that is to be noted: once it has lasted for a while, and again after a longer
// while.
func (a *alarm) step(over bool, now time.Time, t *Thresholds) bool {
	if !over {
		a.since, a.noted = time.Time{}, time.Time{}
		return false
	}
	if a.since.IsZero() {
		a.since = now
	}
	if now.Sub(a.since) < t.For || !a.noted.IsZero() && now.Sub(a.noted) < t.Again {
		return false
	}
	a.noted = now
	return true
}

// level notes a value that stays at or above a share of its limit.
func (m *Monitor) level(t *task, code string, value, limit int64, threshold float64, now time.Time) {
	if threshold == 0 || limit <= 0 {
		return
	}
	at := int64(float64(limit) * threshold)
	id := ""
	if t != nil {
		id = t.ID
	}
	a := m.alarms.of(id, code)
	if a.step(value >= at, now, &m.cfg.Thresholds) {
		if t != nil && t.Sealed {
			at, value, limit = int64(100*threshold), 100*value/limit, 100
		}
		m.note(t, anomaly.OverThreshold, code, map[string]int64{
			"threshold": at, "value": value, "limit": limit, "duration_ms": now.Sub(a.since).Milliseconds()})
	}
}

// judgeTask notes what of a task is beyond its thresholds.
func (m *Monitor) judgeTask(t *task, u *api.TaskUsage, c, was cgroups.Counters, now time.Time) {
	th := &m.cfg.Thresholds
	memory, pids := c.Memory, c.PIDs
	if len(t.Inner) > 0 {
		memory, pids = c.InnerMemory, c.InnerPIDs // what the limits are on
	}
	m.level(t, "memory", memory, t.Limits.Memory, th.Memory, now)
	m.level(t, "pids", pids, t.Limits.PIDs, th.PIDs, now)
	m.level(t, "storage", u.StorageUsed, u.StorageSize, th.Storage, now)
	if full := m.alarms.of(t.ID, "full"); t.full && (full.noted.IsZero() || now.Sub(full.noted) >= th.Again) {
		full.noted = now // at once: whoever writes next fails
		numbers := map[string]int64{"used": u.StorageUsed, "total": u.StorageSize}
		if t.Sealed {
			numbers = nil
		}
		m.note(t, anomaly.ENOSPC, "storage", numbers)
	} else if !t.full {
		full.noted = time.Time{}
	}
	if th.Throttled == 0 {
		return
	}
	a := m.alarms.of(t.ID, "throttled")
	ran := c.Periods > was.Periods
	if !ran && !a.since.IsZero() {
		return // neither held back nor not: it did nothing meanwhile
	}
	if over := u.Throttled >= th.Throttled; over && a.since.IsZero() {
		a.base = was
	}
	if a.step(u.Throttled >= th.Throttled, now, th) {
		numbers := map[string]int64{
			"throttled_us": (c.Throttled - a.base.Throttled).Microseconds(), "usage_us": (c.CPU - a.base.CPU).Microseconds(),
			"periods": c.Periods - a.base.Periods, "throttled_periods": c.ThrottledPeriods - a.base.ThrottledPeriods,
			"duration_ms": now.Sub(a.since).Milliseconds(), "limit": t.Limits.CPU}
		if t.Sealed {
			delete(numbers, "limit")
		}
		m.note(t, anomaly.Throttled, "cpu", numbers)
		a.base = c
	}
}

// judgeMachine notes what of the machine is beyond its thresholds. Pressure is in
// hundredths of a percent.
func (m *Monitor) judgeMachine(u *api.MachineUsage, now time.Time) {
	th := &m.cfg.Thresholds
	m.level(nil, "cpu", u.CPU, int64(u.CPUs)*1000, th.CPU, now)
	m.level(nil, "memory", u.MemoryTotal-u.MemoryAvailable, u.MemoryTotal, th.Memory, now)
	m.level(nil, "disk", u.DiskSize-u.DiskFree, u.DiskSize, th.Storage, now)
	for what, p := range u.Pressure {
		m.level(nil, "pressure-"+what, int64(p.Some*100), 100*100, th.Pressure, now)
	}
}

// note appends one event about a task, or the machine where it is nil.
func (m *Monitor) note(t *task, kind anomaly.Kind, code string, numbers map[string]int64) {
	e := anomaly.Event{Kind: kind, Code: code, Numbers: numbers}
	if t != nil {
		e.Sandbox, e.Function = t.ID, string(t.Function)
		if d, err := sealed.ParseDigest(t.Revision); err == nil {
			e.Revision = d
		}
	}
	m.cfg.Anomalies.Append(e)
}
