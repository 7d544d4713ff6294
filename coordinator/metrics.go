package coordinator

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
)

// metrics are what a coordinator counts.
type metrics struct {
	reg         prometheus.Registerer
	invocations *prometheus.CounterVec
	ok          prometheus.Counter
	seconds     prometheus.Histogram
	refusals    *prometheus.CounterVec
	queued      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		reg: reg,
		invocations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faasd_sec_invocations_total", Help: "Invocations by outcome code."}, []string{"code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "faasd_sec_invocation_seconds", Help: "Time from the request's head to the end of the reply.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20)}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faasd_sec_node_refusals_total", Help: "Refusals by nodes, by code."}, []string{"code"}),
		queued: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "faasd_sec_invocations_queued_total", Help: "Invocations that had to wait for room."}),
	}
	m.ok = m.invocations.WithLabelValues("ok")
	if reg != nil {
		reg.MustRegister(m.invocations, m.seconds, m.refusals, m.queued)
	}
	return m
}

func (m *metrics) refused(code api.Code) { m.invocations.WithLabelValues(code.Label()).Inc() }

func (m *metrics) done(began time.Time, code api.Code) {
	m.seconds.Observe(time.Since(began).Seconds())
	if code == "ok" {
		m.ok.Inc()
		return
	}
	m.refused(code)
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
	gauge("faasd_sec_members", "Members of the mesh.", func() float64 { return float64(len(c.dep.Mesh.Snapshot().Nodes)) })
	gauge("faasd_sec_functions", "Functions deployed.", func() float64 { return float64(len(c.dep.Cache.Snapshot().Functions)) })
}
