package gate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
)

// OK is the outcome of an invocation whose sealed reply went out whole.
const OK api.Code = "ok"

// Metrics are what a gateway counts of invocations.
type Metrics struct {
	invocations *prometheus.CounterVec
	ok          prometheus.Counter
	seconds     prometheus.Histogram
}

// NewMetrics registers with reg, which may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		invocations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "faasd_sec_invocations_total", Help: "Invocations by outcome code."}, []string{"code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "faasd_sec_invocation_seconds", Help: "Time from the request's head to the end of the reply.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20)}),
	}
	m.ok = m.invocations.WithLabelValues(string(OK))
	if reg != nil {
		reg.MustRegister(m.invocations, m.seconds)
	}
	return m
}

// Refused counts an invocation that was not let in.
func (m *Metrics) Refused(code api.Code) { m.invocations.WithLabelValues(code.Label()).Inc() }

// Done counts one that was, with its time since began.
func (m *Metrics) Done(began time.Time, code api.Code) {
	m.seconds.Observe(time.Since(began).Seconds())
	if code == OK {
		m.ok.Inc()
		return
	}
	m.Refused(code)
}

// Broke is the code of an exchange that broke off with err: broken, unless its
// caller left.
func Broke(err error, broken api.Code) api.Code {
	if api.CodeOf(err) == api.CodeCallerGone {
		return api.CodeCallerGone
	}
	return broken
}

// Outcome is the code of an exchange whose reply had this HTTP status and which
// ended with err; broken is the code of one that broke off.
func Outcome(status int, err error, broken api.Code) api.Code {
	switch {
	case err != nil:
		return Broke(err, broken)
	case status == 200:
		return OK
	}
	return api.CodeAgentRefused
}
