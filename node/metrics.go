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
	checks       *prometheus.CounterVec
	poolHits     prometheus.Counter
	poolMisses   prometheus.Counter
	fillSeconds  prometheus.Histogram
	bindSeconds  prometheus.Histogram
	keysSeconds  prometheus.Histogram
	thawSeconds  prometheus.Histogram // its count is the number of thaws

	imagesForgotten prometheus.Counter
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
	m.checks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "faasd_sec_node_second_checks_failed_total", Help: "Starts refused right before the function may run, by what did not hold any more."}, []string{"check"})
	m.poolHits = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "faasd_sec_node_pool_hits_total", Help: "Starts that found a sandbox waiting in the pool."})
	m.poolMisses = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "faasd_sec_node_pool_misses_total", Help: "Starts that could have used a sandbox of the pool and found none."})
	m.fillSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "faasd_sec_node_pool_fill_seconds", Help: "Time to make one sandbox for the pool, evidence included.",
		Buckets: prometheus.ExponentialBuckets(0.002, 2, 14)})
	m.bindSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "faasd_sec_node_pool_bind_seconds", Help: "Time of the runtime's part in giving a waiting sandbox its function.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14)})
	m.keysSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "faasd_sec_node_key_release_seconds", Help: "Time from asking the key broker to having the keys of a start.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)})
	m.thawSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "faasd_sec_node_thaw_seconds", Help: "Time to thaw a frozen sandbox for a call.",
		Buckets: prometheus.ExponentialBuckets(0.00002, 2, 16)})
	m.imagesForgotten = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "faasd_sec_node_images_forgotten_total", Help: "Images let go because no revision known here had used them for long."})
	m.ok = m.invocations.WithLabelValues("ok")
	if reg != nil {
		reg.MustRegister(m.invocations, m.inFlight, m.starts, m.startSeconds, m.events, m.checks,
			m.poolHits, m.poolMisses, m.fillSeconds, m.bindSeconds, m.keysSeconds, m.thawSeconds, m.imagesForgotten)
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
	gauge("faasd_sec_node_sandboxes_frozen", "Sandboxes whose processes stand still until the next call.", func() float64 {
		frost := 0
		for _, s := range n.fleet {
			if s.state == frozen {
				frost++
			}
		}
		return float64(frost)
	})
	gauge("faasd_sec_node_pool_depth", "Sandboxes that wait for a function.", func() float64 { return float64(len(n.pool.idle)) })
	gauge("faasd_sec_node_pool_target", "Sandboxes that should wait for a function.", func() float64 { return float64(n.pool.target) })
	gauge("faasd_sec_node_pool_creating", "Sandboxes being made for the pool.", func() float64 { return float64(n.pool.making) })
	gauge("faasd_sec_node_pool_waiters", "Starts that wait for a sandbox of the pool.", func() float64 { return float64(n.pool.queue.len()) })
	gauge("faasd_sec_node_reserved_cpu_millicores", "CPU reserved.", func() float64 { return float64(n.ledger.reserved.CPU) })
	gauge("faasd_sec_node_reserved_memory_bytes", "Memory reserved.", func() float64 { return float64(n.ledger.reserved.Memory) })
	for name, of := range map[string]func(api.Resources) int64{
		"pids": func(r api.Resources) int64 { return r.PIDs }, "ports": func(r api.Resources) int64 { return r.Ports },
		"cores":               func(r api.Resources) int64 { return r.Cores },
		"scratch_bytes":       func(r api.Resources) int64 { return r.Scratch },
		"ingress_bits_second": func(r api.Resources) int64 { return r.Ingress }, "egress_bits_second": func(r api.Resources) int64 { return r.Egress },
	} {
		gauge("faasd_sec_node_reserved_"+name, "Reserved of what is lent to functions.", func() float64 { return float64(of(n.ledger.reserved)) })
		gauge("faasd_sec_node_capacity_"+name, "Lent to functions.", func() float64 { return float64(of(n.ledger.capacity)) })
	}
	gauge("faasd_sec_node_capacity_cpu_millicores", "CPU lent to functions.", func() float64 { return float64(n.ledger.capacity.CPU) })
	gauge("faasd_sec_node_capacity_memory_bytes", "Memory lent to functions.", func() float64 { return float64(n.ledger.capacity.Memory) })
}
