package proxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
)

// noRoute is the label of what no route admitted.
const noRoute = "none"

// metrics count by route and code: names of functions, which callers choose, are
// no labels.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
	retried  prometheus.Counter
	pins     *prometheus.CounterVec
	broken   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faasd_sec_proxy_requests_total", Help: "Requests by route and outcome code."}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "faasd_sec_proxy_request_seconds", Help: "Time from the request's head to the end of the reply, by route.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18)}, []string{"route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "faasd_sec_proxy_in_flight", Help: "Requests under way."}),
		retried: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "faasd_sec_proxy_retried_total", Help: "Requests that were sealed a second time, for a newer revision."}),
	}
	m.pins = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "faasd_sec_proxy_pins_reads_total", Help: "Readings of the file of pins after it changed, by outcome: ok or failed."}, []string{"outcome"})
	m.broken = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "faasd_sec_proxy_pins_broken", Help: "1 while the file of pins cannot be used and those read before hold."})
	for _, outcome := range []string{pinsOK, pinsFailed} {
		m.pins.WithLabelValues(outcome)
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.inFlight, m.retried, m.pins, m.broken)
	}
	return m
}

const (
	pinsOK     = "ok"
	pinsFailed = "failed"
)

// pinsRead counts a reading of the pins' file.
func (m *metrics) pinsRead(err error) {
	if err != nil {
		m.pins.WithLabelValues(pinsFailed).Inc()
		m.broken.Set(1)
		return
	}
	m.pins.WithLabelValues(pinsOK).Inc()
	m.broken.Set(0)
}

// done counts a request that ended with err, nil for one whose reply went out whole.
func (m *metrics) done(route string, began time.Time, err error) {
	code := string(gate.OK)
	switch c := api.CodeOf(err); c {
	case "":
	default:
		code = c.Label()
	}
	m.requests.WithLabelValues(route, code).Inc()
	m.seconds.WithLabelValues(route).Observe(time.Since(began).Seconds())
}
