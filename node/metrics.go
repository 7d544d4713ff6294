package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
)

// metrics are what a node counts. Names of functions are not labels: their
// number is not bounded.
type metrics struct {
	reg          prometheus.Registerer
	invocations  *prometheus.CounterVec
	ok           prometheus.Counter
	inFlight     prometheus.Gauge
	starts       *prometheus.CounterVec
	startSeconds prometheus.Histogram
	events       *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		reg: reg,
		invocations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faasd_sec_node_invocations_total", Help: "Invocations by outcome code."}, []string{"code"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "faasd_sec_node_invocations_in_flight", Help: "Invocations under way."}),
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faasd_sec_node_sandbox_starts_total", Help: "Sandbox starts by outcome code."}, []string{"code"}),
		startSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "faasd_sec_node_sandbox_start_seconds", Help: "Time from the decision to a ready function.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faasd_sec_node_sandbox_events_total", Help: "What the runtime reported, by kind."}, []string{"kind"}),
	}
	m.ok = m.invocations.WithLabelValues("ok")
	if reg != nil {
		reg.MustRegister(m.invocations, m.inFlight, m.starts, m.startSeconds, m.events)
	}
	return m
}

// done counts one finished invocation.
func (m *metrics) done(code api.Code) {
	m.inFlight.Dec()
	if code == "ok" {
		m.ok.Inc()
		return
	}
	m.invocations.WithLabelValues(code.Label()).Inc()
}

// observe registers gauges that read the node's state when they are scraped.
func (m *metrics) observe(n *Node) {
	if m.reg == nil {
		return
	}
	gauge := func(name, help string, f func() float64) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			n.mu.Lock()
			defer n.mu.Unlock()
			return f()
		}))
	}
	gauge("faasd_sec_node_sandboxes", "Sandboxes that exist.", func() float64 { return float64(len(n.fleet)) })
	gauge("faasd_sec_node_reserved_cpu_millicores", "CPU reserved.", func() float64 { return float64(n.ledger.reserved.CPU) })
	gauge("faasd_sec_node_reserved_memory_bytes", "Memory reserved.", func() float64 { return float64(n.ledger.reserved.Memory) })
	gauge("faasd_sec_node_capacity_cpu_millicores", "CPU lent to functions.", func() float64 { return float64(n.ledger.capacity.CPU) })
	gauge("faasd_sec_node_capacity_memory_bytes", "Memory lent to functions.", func() float64 { return float64(n.ledger.capacity.Memory) })
}
