package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/faasd-sec/faasd-sec/api"
)

// frame is one picture of top. What it draws depends on its fields alone.
type frame struct {
	gateway       string
	at            time.Time
	glance        *glance
	problem       string // of the last look
	width, height int
	order         int // of orders
	scroll        int
}

// orders are those of tasks; the first is what top begins with.
var orders = []string{"cpu", "memory", "name"}

// sparkWidth is how many values a line shows in a frame.
const sparkWidth = 12

// spark draws the last n values between 0 and most, or the largest of them where
// most is 0.
func spark(values []float32, n int, most float32) string {
	const bars = "▁▂▃▄▅▆▇█"
	if len(values) > n {
		values = values[len(values)-n:]
	}
	if most == 0 {
		for _, v := range values {
			most = max(most, v)
		}
	}
	out := strings.Repeat(" ", n-len(values))
	for _, v := range values {
		i := 0
		if most > 0 {
			i = min(7, max(0, int(v/most*8)))
		}
		out += string([]rune(bars)[i])
	}
	return out
}

// bitsText writes a rate of bits with a decimal unit.
func bitsText(n int64) string {
	units := []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s"}
	v, i := float64(n), 0
	for v >= 1000 && i < len(units)-1 {
		v /= 1000
		i++
	}
	if i == 0 || v >= 100 {
		return fmt.Sprintf("%.0f%s", v, units[i])
	}
	return fmt.Sprintf("%.1f%s", v, units[i])
}

func percent(part, of int64) string {
	if of <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", part*100/of)
}

// nodesUsage shows nodes by their own word. A node that did not answer is shown
// by gossip's, with why.
func nodesUsage(nodes []api.NodeDetail, sparks bool) *table {
	t := newTable("NODE", "STATE", "CPU", "MEMORY", "RESERVED CPU", "RESERVED MEM", "PRESSURE c/m/i", "IN/OUT", "DISK FREE", "TASKS", "IN FLIGHT")
	for _, d := range nodes {
		s := d.Status
		if s == nil {
			t.row(d.View.Meta.ID, "no answer: "+first(d.Error, "unknown"), "-", "-", "-", "-", "-", "-", "-",
				fmt.Sprint(d.View.Load.Running), fmt.Sprint(d.View.Load.InFlight))
			continue
		}
		state := "ready"
		if s.Draining {
			state = "draining"
		}
		m := &s.Machine
		used := m.MemoryTotal - m.MemoryAvailable
		cpu, memory := fmt.Sprintf("%s/%s", cpuText(m.CPU), cpuText(int64(m.CPUs)*1000)), bytesText(used)+"/"+bytesText(m.MemoryTotal)
		if sparks && s.History != nil {
			cpu = spark(s.History.CPU, sparkWidth, float32(m.CPUs)*1000) + " " + cpu
			memory = spark(s.History.Memory, sparkWidth, float32(m.MemoryTotal)) + " " + memory
		}
		pressure := "-"
		if len(m.Pressure) > 0 {
			pressure = fmt.Sprintf("%.0f/%.0f/%.0f%%", m.Pressure["cpu"].Some, m.Pressure["memory"].Some, m.Pressure["io"].Some)
		}
		var in, out int64
		for _, i := range m.Interfaces {
			in, out = in+i.In, out+i.Out
		}
		t.row(s.Node, state, cpu, memory, cpuText(s.Reserved.CPU)+" "+percent(s.Reserved.CPU, s.Capacity.CPU),
			bytesText(s.Reserved.Memory)+" "+percent(s.Reserved.Memory, s.Capacity.Memory), pressure,
			bitsText(in)+" "+bitsText(out), percent(m.DiskFree, m.DiskSize), fmt.Sprint(len(s.Tasks)), fmt.Sprint(s.InFlight))
	}
	return t
}

// tasks are those of all nodes in the frame's order.
func (f *frame) tasks() []api.TaskStatus {
	var all []api.TaskStatus
	for _, d := range f.glance.Details {
		if d.Status != nil {
			all = append(all, d.Status.Tasks...)
		}
	}
	byName := func(a, b *api.TaskStatus) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	}
	slices.SortFunc(all, func(a, b api.TaskStatus) int {
		switch orders[f.order] {
		case "cpu":
			return cmp.Or(cmp.Compare(b.Usage.CPU, a.Usage.CPU), byName(&a, &b))
		case "memory":
			return cmp.Or(cmp.Compare(b.Usage.Memory, a.Usage.Memory), byName(&a, &b))
		}
		return byName(&a, &b)
	})
	return all
}

func (f *frame) taskTable(sparks bool) *table {
	t := newTable("FUNCTION", "NODE", "TASK", "STATE", "CPU", "HELD BACK", "MEMORY", "PIDS", "STORAGE", "IN/OUT", "IN FLIGHT", "AGE")
	for _, s := range f.tasks() {
		u := &s.Usage
		cpu, memory, pids := cpuText(u.CPU), bytesText(u.Memory), fmt.Sprint(u.PIDs)
		if s.Sealed {
			cpu, memory, pids = cpu+"/sealed", memory+"/sealed", pids+"/sealed"
		} else {
			cpu, memory, pids = cpu+"/"+cpuText(s.Limits.CPU), memory+"/"+bytesText(s.Limits.Memory), fmt.Sprintf("%s/%d", pids, s.Limits.PIDs)
		}
		if sparks && s.History != nil {
			cpu = spark(s.History.CPU, sparkWidth, float32(s.Limits.CPU)) + " " + cpu
			memory = spark(s.History.Memory, sparkWidth, float32(s.Limits.Memory)) + " " + memory
		}
		storage, net := "-", "-"
		if s.Sealed {
			storage = bytesText(u.StorageUsed) + "/sealed"
		} else if u.StorageSize > 0 {
			storage = bytesText(u.StorageUsed) + "/" + bytesText(u.StorageSize)
		}
		if u.Network {
			net = bitsText(u.In) + " " + bitsText(u.Out)
		}
		state := s.State
		if u.OOMKills > 0 {
			state += fmt.Sprintf(" (%d OOM)", u.OOMKills)
		}
		t.row(s.Function.Short(), s.Node, s.ID, state, cpu, fmt.Sprintf("%.0f%%", u.Throttled*100), memory,
			pids, storage, net, fmt.Sprint(s.InFlight), ago(time.UnixMilli(s.StartedAt), f.at))
	}
	return t
}

func (f *frame) title() string {
	tasks, missing := len(f.tasks()), 0
	for _, d := range f.glance.Details {
		if d.Status == nil {
			missing++
		}
	}
	s := fmt.Sprintf("%s  %s  %d nodes, %d tasks", one(f.gateway), f.at.Format(time.TimeOnly), len(f.glance.Details), tasks)
	if missing > 0 {
		s += fmt.Sprintf(", %d do not answer", missing)
	}
	return s
}

func lines(t *table) []string {
	var b strings.Builder
	_ = t.print(&b) // a Builder takes everything
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// plain is the whole picture as text.
func (f *frame) plain() string {
	out := append([]string{f.title(), ""}, lines(nodesUsage(f.glance.Details, false))...)
	if tasks := lines(f.taskTable(false)); len(tasks) > 1 {
		out = append(append(out, ""), tasks...)
	}
	return strings.Join(out, "\n") + "\n"
}

// key takes a key.
func (f *frame) key(k string) {
	switch k {
	case "s":
		f.order, f.scroll = (f.order+1)%len(orders), 0
	case "\x1b[A", "k":
		f.scroll = max(0, f.scroll-1)
	case "\x1b[B", "j":
		f.scroll++
	}
}

// live is the picture for a terminal of the frame's size, to be drawn over the
// last one. Tasks that have no room are scrolled to.
func (f *frame) live() string {
	head := []string{termBold + f.title() + termPlain, ""}
	nodes := lines(nodesUsage(f.glance.Details, true))
	nodes[0] = termBold + nodes[0] + termPlain
	head = append(append(head, nodes...), "")
	tasks := lines(f.taskTable(true))
	head = append(head, termBold+tasks[0]+termPlain)
	tasks = tasks[1:]
	foot := "q quit  s order: " + orders[f.order] + "  ↑↓ scroll  space look now"
	if f.problem != "" {
		foot = f.problem
	}
	room := max(0, f.height-len(head)-1)
	f.scroll = max(0, min(f.scroll, len(tasks)-room))
	shown := tasks[f.scroll:min(len(tasks), f.scroll+room)]
	if hidden := len(tasks) - len(shown); hidden > 0 {
		foot += fmt.Sprintf("  (%d-%d of %d tasks)", f.scroll+1, f.scroll+len(shown), len(tasks))
	}
	all := append(append(head, shown...), make([]string, room-len(shown))...)
	all = append(all, foot)
	if len(all) > f.height {
		all = all[:f.height]
	}
	for i := range all {
		all[i] = clip(all[i], f.width) + termEOL
	}
	return termHome + strings.Join(all, "\r\n") + termBelow
}

// clip cuts a line at a width, not counting the sequences of bold.
func clip(s string, width int) string {
	bold := strings.HasPrefix(s, termBold)
	s = strings.TrimSuffix(strings.TrimPrefix(s, termBold), termPlain)
	if utf8.RuneCountInString(s) > width {
		s = string([]rune(s)[:width])
	}
	if bold {
		return termBold + s + termPlain
	}
	return s
}
