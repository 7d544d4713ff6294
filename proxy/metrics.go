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
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.inFlight, m.retried)
	}
	return m
}

// done counts a request that ended with err, nil for one whose reply went out whole.
func (m *metrics) done(route string, began time.Time, err error) {
	code := string(gate.OK)
	switch c := api.CodeOf(err); c {
	case "":
	case codeGone:
		code = string(c)
	default:
		code = c.Label()
	}
	m.requests.WithLabelValues(route, code).Inc()
	m.seconds.WithLabelValues(route).Observe(time.Since(began).Seconds())
}
