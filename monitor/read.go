package monitor

import (
	"maps"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/faasd-sec/faasd-sec/api"
)

// net is the file with the counters of the interfaces that t sees.
func (m *Monitor) net(t *task) string {
	return filepath.Join(m.cfg.Proc, strconv.Itoa(t.pid), "net/dev")
}

// Machine returns the last sample of the machine and when it was, in unix
// milliseconds; 0 before the first.
func (m *Monitor) Machine() (api.MachineUsage, int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.usage
	u.Pressure, u.Interfaces = maps.Clone(u.Pressure), slices.Clone(u.Interfaces)
	if m.last.IsZero() {
		return u, 0
	}
	return u, m.last.UnixMilli()
}

// Usage returns the last sample of a task; false while there is none.
func (m *Monitor) Usage(id string) (api.TaskUsage, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tasks[id]
	if t == nil || t.usage.At == 0 {
		return api.TaskUsage{}, false
	}
	return t.usage, true
}

// MachineHistory and TaskHistory are the last n samples, oldest first; coarse ones
// where asked, which reach further. The latter is nil for a task not watched.
func (m *Monitor) MachineHistory(n int, coarse bool) *api.History {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.history(m.past, n, coarse)
	return &h
}

// TaskHistory is described with MachineHistory.
func (m *Monitor) TaskHistory(id string, n int, coarse bool) *api.History {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tasks[id]
	if t == nil {
		return nil
	}
	h := m.history(t.past, n, coarse)
	if !t.usage.Network {
		h.In, h.Out = nil, nil
	}
	return &h
}

func (m *Monitor) history(s *series, n int, coarse bool) api.History {
	h := api.History{EveryMs: m.cfg.Every.Milliseconds()}
	points := s.fine.last(n)
	if coarse {
		points, h.EveryMs = s.coarse.last(n), h.EveryMs*int64(m.cfg.Fold)
	}
	for _, p := range points {
		h.CPU, h.Memory = append(h.CPU, p.CPU), append(h.Memory, p.Memory)
		h.In, h.Out = append(h.In, p.In), append(h.Out, p.Out)
	}
	return h
}

// Totals returns the sums over tasks.
func (m *Monitor) Totals() Totals {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}
