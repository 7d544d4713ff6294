package coordinator

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/gate"
)

// metrics are what a coordinator counts.
type metrics struct {
	*gate.Metrics
	reg      prometheus.Registerer
	refusals *prometheus.CounterVec
	queued   prometheus.Counter
	retried  prometheus.Counter
	async    *asyncMetrics
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		Metrics: gate.NewMetrics(reg), reg: reg, async: newAsyncMetrics(reg),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faasd_sec_node_refusals_total", Help: "Refusals by nodes, by code."}, []string{"code"}),
		queued: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "faasd_sec_invocations_queued_total", Help: "Invocations that had to wait for room."}),
		retried: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "faasd_sec_tasks_retried_total", Help: "Attempts that a task's retry policy added."}),
	}
	if reg != nil {
		reg.MustRegister(m.refusals, m.queued, m.retried)
	}
	return m
}

// observe registers gauges read at scrape time.
func (m *metrics) observe(c *Coordinator) {
	if m.reg == nil {
		return
	}
	gauge := func(name, help string, f func() float64) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
	}
	gauge("faasd_sec_queue_length", "Invocations that wait for room.", func() float64 { return float64(c.queue.count.Load()) })
	m.reg.MustRegister(backlogs{c.queue})
	gauge("faasd_sec_invocations_in_flight", "Invocations that were offered to a node and have not ended.", func() float64 { return float64(c.peers.inFlightAll()) })
	gauge("faasd_sec_tasks_remembered", "Tasks that were accepted and are not accepted again.", func() float64 { return float64(c.tasks.size()) })
	gauge("faasd_sec_held_bytes", "Bytes of request bodies that count against the budget.", func() float64 { return float64(c.budget.inUse()) })
	gauge("faasd_sec_members", "Members of the mesh.", func() float64 { return float64(len(c.dep.Mesh.Snapshot().Nodes)) })
	gauge("faasd_sec_members_watched", "Nodes whose leaving without a word would be noted.", func() float64 { return float64(c.members.Load()) })
	gauge("faasd_sec_functions", "Functions deployed.", func() float64 { return float64(len(c.dep.Cache.Snapshot().Functions)) })
}
