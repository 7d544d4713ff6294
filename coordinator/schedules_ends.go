package coordinator

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/schedule"
)

// endings are the schedules of which it was said that they end or have ended, with
// the last tick that this was said of: one that was continued is another matter.
type endings map[string]ending

type ending struct {
	until int64
	over  bool
}

// tellEnds says once of each schedule that it ends soon, and once that it has ended:
// in the log, and as an anomaly. Of several coordinators one does.
func (c *Coordinator) tellEnds(said endings, now time.Time) {
	soon := now.Add(c.async.Schedules.Warn).UnixMilli()
	there := map[string]bool{}
	for _, p := range c.async.Queue.Plans(func(p *queue.Plan) bool { return p.Until() <= soon }) {
		there[p.ID] = true
		is := ending{p.Until(), p.Cursor.Next == 0}
		if said[p.ID] == is {
			continue
		}
		said[p.ID] = is
		if !c.async.Queue.Mine(p.ID) {
			continue
		}
		what, code := "a schedule ends soon; its maker seals more (faasd-sec schedule top-up)", "ending"
		if is.over {
			what, code = "a schedule has ended: nothing of it is called any more until its maker seals more (faasd-sec schedule top-up)", "ended"
		}
		c.log.Warn(what, "schedule", p.ID, "mark", schedule.Mark(p.ID), "function", p.Function, "maker", p.Maker, "until", time.UnixMilli(p.Until()), "left", p.Cursor.Left)
		c.scheduleAnomaly(&p, code, 0, now)
	}
	for id := range said {
		if !there[id] {
			delete(said, id)
		}
	}
}

// scheduleAnomaly notes what became of a schedule, and of count ticks where it is not 0.
func (c *Coordinator) scheduleAnomaly(p *queue.Plan, code string, count int, now time.Time) {
	numbers := map[string]int64{"left": int64(p.Cursor.Left), "left_ms": left(p, now).Milliseconds()}
	if count > 0 {
		numbers["count"] = int64(count)
	}
	c.dep.Watching.Anomalies.Append(anomaly.Event{Kind: anomaly.Schedule, Function: string(p.Function), Sandbox: schedule.Mark(p.ID), Code: code, Numbers: numbers})
}

// left is the time until the last tick that is left, 0 where none is.
func left(p *queue.Plan, now time.Time) time.Duration {
	if p.Cursor.Next == 0 {
		return 0
	}
	return max(time.UnixMilli(p.Until()).Sub(now), 0)
}

// observeSchedules registers what is told of schedules at scrape time.
func (m *metrics) observeSchedules(q *queue.Queue, s Schedules) {
	if m.reg == nil {
		return
	}
	gauge := func(name, help string, f func() float64) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
	}
	plans := func(name, help string, ok func(*queue.Plan) bool) {
		gauge(name, help, func() float64 { return float64(len(q.Plans(ok))) })
	}
	plans("faasd_sec_schedules", "Schedules of calls that were sealed ahead.", nil)
	plans("faasd_sec_schedules_ending", "Of these, those that end within -schedule-warn, or have.", func(p *queue.Plan) bool { return p.Until() <= time.Now().Add(s.Warn).UnixMilli() })
	plans("faasd_sec_schedules_ended", "Of these, those that have no sealed tick left.", func(p *queue.Plan) bool { return p.Cursor.Next == 0 })
	plans("faasd_sec_schedules_refused", "Of these, those whose last tick could not be a call.", func(p *queue.Plan) bool { return p.Cursor.Why != nil })
	gauge("faasd_sec_schedule_warn_seconds", "Time before its end at which a schedule is warned of.", s.Warn.Seconds)
	m.reg.MustRegister(&eachSchedule{q, s.Metrics})
}

// eachSchedule tells of schedules one by one, of those that end first: whoever may
// call a function may put some, and each is a series at Prometheus.
type eachSchedule struct {
	queue *queue.Queue
	most  int
}

var (
	ticksLeft = prometheus.NewDesc("faasd_sec_schedule_ticks_left", "Sealed ticks that are left of a schedule.", []string{"function", "schedule"}, nil)
	timeLeft  = prometheus.NewDesc("faasd_sec_schedule_seconds_left", "Time until the last sealed tick of a schedule.", []string{"function", "schedule"}, nil)
)

// Describe implements prometheus.Collector.
func (e *eachSchedule) Describe(ch chan<- *prometheus.Desc) { ch <- ticksLeft; ch <- timeLeft }

// Collect implements prometheus.Collector.
func (e *eachSchedule) Collect(ch chan<- prometheus.Metric) {
	now, all := time.Now(), e.queue.Plans(nil)
	slices.SortStableFunc(all, func(a, b queue.Plan) int { return int(left(&a, now).Milliseconds() - left(&b, now).Milliseconds()) })
	for _, p := range all[:min(len(all), e.most)] {
		name, mark := string(p.Function), schedule.Mark(p.ID)
		ch <- prometheus.MustNewConstMetric(ticksLeft, prometheus.GaugeValue, float64(p.Cursor.Left), name, mark)
		ch <- prometheus.MustNewConstMetric(timeLeft, prometheus.GaugeValue, left(&p, now).Seconds(), name, mark)
	}
}
