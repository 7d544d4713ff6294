package monitor

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
)

// Monitor watches one machine. Make it with New and run it with Run.
type Monitor struct {
	cfg     Config
	log     *slog.Logger
	machine *machine // of Run
	alarms  alarms   // of Run
	slowAt  time.Time

	mu    sync.Mutex // guards what follows; held for copies, not for reads of files
	tasks map[string]*task
	last  time.Time
	usage api.MachineUsage
	past  *series
	total Totals
}

// task is one task under watch. What Run alone touches has no lock.
type task struct {
	Task
	meter  *cgroups.Meter // nil once its group is gone
	was    cgroups.Counters
	wasAt  time.Time
	places []string // its writable file systems
	looks  int      // slow ones
	pid    int      // of a process that sees what the task sees
	full   bool
	net    [2]int64 // bytes in and out, of the last look
	netAt  time.Time

	usage api.TaskUsage // Monitor.mu
	past  *series       // Monitor.mu
}

// Totals are sums over all tasks there ever were, which only grow, and over those
// there are.
type Totals struct {
	CPU, Throttled              time.Duration
	OOMKills                    int64
	ReadBytes, WriteBytes       int64
	Memory, PIDs                int64 // now
	StorageUsed, StorageSize    int64 // now
	Tasks                       int   // under watch now
	Unwatched                   int   // now, for want of room
	Samples, Failures, Overruns int64 // Overruns: a sample that took longer than the interval
	Spent                       time.Duration
}

// New checks cfg. fs is where the machine's own pressure is read.
func New(cfg Config, fs cgroups.FS, log *slog.Logger) (*Monitor, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Anomalies == nil {
		cfg.Anomalies = anomaly.Discard{}
	}
	m := &Monitor{cfg: cfg, log: log, tasks: map[string]*task{}, past: newSeries(cfg.Fine, cfg.Coarse, cfg.Fold), alarms: alarms{}}
	var err error
	if m.machine, err = newMachine(&m.cfg, fs); err != nil {
		return nil, err
	}
	return m, nil
}

// Run samples until ctx ends, and closes what it opened. It is called once.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.close()
	tick := time.NewTicker(m.cfg.Every)
	defer tick.Stop()
	for {
		m.sample()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (m *Monitor) close() {
	m.machine.close()
	for _, t := range m.tasks {
		t.drop()
	}
}

func (t *task) drop() {
	if t.meter != nil {
		t.meter.Close()
		t.meter = nil
	}
}

// sample looks at everything once.
func (m *Monitor) sample() {
	now := m.cfg.Now()
	began := time.Now()
	slow := now.Sub(m.slowAt) >= m.cfg.SlowEvery
	slowSpan := now.Sub(m.slowAt).Seconds()
	if m.slowAt.IsZero() {
		slowSpan = 0
	}
	if slow {
		m.slowAt = now
	}
	unwatched := m.adopt(m.cfg.Tasks())

	m.mu.Lock()
	u, first := m.usage, m.last.IsZero()
	m.mu.Unlock()
	err := m.machine.fast(&u)
	if slow {
		err = errors.Join(err, m.machine.slow(&u, slowSpan))
	}
	if err != nil {
		m.log.Warn("watch the machine", "err", err)
	}
	var sum Totals
	for _, t := range m.tasks {
		m.look(t, now, slow, &sum)
	}
	if !first {
		m.judgeMachine(&u, now)
	}
	p := Point{At: now.UnixMilli(), CPU: float32(u.CPU), Memory: float32(u.MemoryTotal - u.MemoryAvailable), PIDs: float32(sum.PIDs)}
	for _, i := range u.Interfaces {
		p.In += float32(i.In)
		p.Out += float32(i.Out)
	}
	took := time.Since(began)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last, m.usage = now, u
	m.past.put(p)
	t := &m.total
	t.CPU += sum.CPU
	t.Throttled += sum.Throttled
	t.OOMKills += sum.OOMKills
	t.ReadBytes += sum.ReadBytes
	t.WriteBytes += sum.WriteBytes
	t.Memory, t.PIDs, t.StorageUsed, t.StorageSize = sum.Memory, sum.PIDs, sum.StorageUsed, sum.StorageSize
	t.Tasks, t.Unwatched = len(m.tasks), unwatched
	t.Samples++
	t.Spent += took
	if err != nil {
		t.Failures++
	}
	if took > m.cfg.Every {
		t.Overruns++
	}
}

// adopt brings the tasks under watch in line with those that run, and returns how
// many found no room.
func (m *Monitor) adopt(list []Task) (unwatched int) {
	here := make(map[string]bool, len(list))
	for _, w := range list {
		here[w.ID] = true
	}
	for id, t := range m.tasks {
		if !here[id] {
			t.drop()
			m.alarms.forget(id)
			m.mu.Lock()
			delete(m.tasks, id)
			m.mu.Unlock()
		}
	}
	for _, w := range list {
		if t := m.tasks[w.ID]; t != nil {
			t.Limits = w.Limits
			continue
		}
		if len(m.tasks) >= m.cfg.MaxTasks {
			unwatched++
			continue
		}
		meter, err := w.Group.Meter(w.Inner...)
		if err != nil {
			if !gone(err) {
				m.log.Warn("watch a task", "task", w.ID, "err", err)
			}
			continue // tried again with the next sample, while it runs
		}
		t := &task{Task: w, meter: meter, past: newSeries(m.cfg.Fine, m.cfg.Coarse, m.cfg.Fold)}
		m.mu.Lock()
		m.tasks[w.ID] = t
		m.mu.Unlock()
	}
	return unwatched
}

// gone reports whether an error says that the group was deleted meanwhile.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// look takes one sample of t.
func (m *Monitor) look(t *task, now time.Time, slow bool, sum *Totals) {
	if t.meter == nil {
		return
	}
	c, err := t.meter.Read()
	if err != nil {
		if !gone(err) {
			m.log.Warn("watch a task", "task", t.ID, "err", err)
		}
		t.drop() // its node forgets it soon
		return
	}
	u := t.usage // Run alone writes it
	seconds := now.Sub(t.wasAt).Seconds()
	if t.wasAt.IsZero() {
		seconds = 0
	}
	was := t.was
	u.At, u.CPUMicros, u.ThrottledUs = now.UnixMilli(), c.CPU.Microseconds(), c.Throttled.Microseconds()
	u.Memory, u.PIDs, u.OOMKills = c.Memory, c.PIDs, c.OOMKills
	u.CPU = rate((c.CPU-was.CPU).Microseconds(), seconds) / 1000
	u.ReadBps, u.WriteBps = rate(c.ReadBytes-was.ReadBytes, seconds), rate(c.WriteBytes-was.WriteBytes, seconds)
	u.Throttled = share(c.ThrottledPeriods-was.ThrottledPeriods, c.Periods-was.Periods)
	if slow {
		m.lookSlow(t, &u, now)
	}
	// What it had used before it was first seen is its own, and counts once.
	sum.CPU += max(0, c.CPU-was.CPU)
	sum.Throttled += max(0, c.Throttled-was.Throttled)
	sum.OOMKills += max(0, c.OOMKills-was.OOMKills)
	sum.ReadBytes += max(0, c.ReadBytes-was.ReadBytes)
	sum.WriteBytes += max(0, c.WriteBytes-was.WriteBytes)
	sum.Memory += u.Memory
	sum.PIDs += u.PIDs
	sum.StorageUsed += u.StorageUsed
	sum.StorageSize += u.StorageSize
	if seconds > 0 {
		m.judgeTask(t, &u, c, was, now)
	}
	t.was, t.wasAt = c, now
	m.mu.Lock()
	defer m.mu.Unlock()
	t.usage = u
	t.past.put(Point{At: u.At, CPU: float32(u.CPU), Throttled: float32(u.Throttled), Memory: float32(u.Memory), PIDs: float32(u.PIDs),
		Read: float32(u.ReadBps), Write: float32(u.WriteBps), In: float32(u.In), Out: float32(u.Out)})
}

// process finds one that is in the task's mount and network namespaces: one of the
// inner groups, where there are some, since a sandbox's agent may see another root.
func (t *task) process() int {
	groups := t.Inner
	if len(groups) == 0 {
		groups = []cgroups.Group{t.Group}
	}
	for _, g := range groups {
		if pids, err := g.Processes(); err == nil && len(pids) > 0 {
			return pids[0]
		}
	}
	return 0
}

// placesEvery is after how many slow looks a task's mounts are read anew.
const placesEvery = 12

// lookSlow takes what takes a look-up of paths. A process that has ended shows
// nothing any more, which is no failure.
func (m *Monitor) lookSlow(t *task, u *api.TaskUsage, now time.Time) {
	// A sandbox gets its root while it starts, and interfaces come and go.
	if again := t.looks%placesEvery == 0; again || len(t.places) == 0 {
		if t.pid = t.process(); t.pid == 0 {
			return
		}
		places, err := writable(m.cfg.Proc, t.pid, m.cfg.Skip)
		if err != nil {
			return
		}
		t.places = places
		if list, err := interfaces(m.net(t)); err == nil {
			for _, i := range list {
				u.Network = u.Network || i.Name != "lo"
			}
		}
	}
	t.looks++
	if used, size, full, err := room(m.cfg.Proc, t.pid, t.places); err == nil {
		u.StorageUsed, u.StorageSize, t.full = used, size, full
	} else {
		t.places = nil // its process has ended: another one may show the same
	}
	if !u.Network {
		return
	}
	list, err := interfaces(m.net(t))
	if err != nil {
		return
	}
	var now2 [2]int64
	for _, i := range list {
		if i.Name != "lo" {
			now2[0] += i.InAll
			now2[1] += i.OutAll
		}
	}
	if !t.netAt.IsZero() {
		s := now.Sub(t.netAt).Seconds()
		u.In, u.Out = rate(now2[0]-t.net[0], s)*8, rate(now2[1]-t.net[1], s)*8
	}
	t.net, t.netAt = now2, now
}

func share(part, of int64) float64 {
	if part <= 0 || of <= 0 {
		return 0
	}
	return min(1, float64(part)/float64(of))
}
