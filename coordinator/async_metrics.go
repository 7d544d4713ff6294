package coordinator

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/queue"
)

// asyncMetrics are what a coordinator counts of asynchronous invocations.
type asyncMetrics struct {
	accepted, attempts, callbacks, ticks *prometheus.CounterVec
	done, dead, retries                  prometheus.Counter
	latency, whole                       prometheus.Histogram
}

func newAsyncMetrics(reg prometheus.Registerer) *asyncMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	byCode := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"code"})
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 16)})
	}
	m := &asyncMetrics{
		ticks:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "faasd_sec_schedule_ticks_total", Help: "Ticks that were sealed ahead: made, missed or refused."}, []string{"outcome"}),
		accepted:  byCode("faasd_sec_async_accepted_total", "Asynchronous invocations that came in, by outcome."),
		attempts:  byCode("faasd_sec_async_attempts_total", "Attempts at asynchronous invocations, by outcome."),
		callbacks: byCode("faasd_sec_async_callbacks_total", "Attempts at callbacks, by outcome."),
		done:      counter("faasd_sec_async_done_total", "Asynchronous invocations whose result was stored."),
		dead:      counter("faasd_sec_async_dead_total", "Asynchronous invocations that were given up."),
		retries:   counter("faasd_sec_async_retries_total", "Failed attempts that are repeated."),
		latency:   seconds("faasd_sec_async_dispatch_seconds", "Time from arrival to the first attempt."),
		whole:     seconds("faasd_sec_async_seconds", "Time from arrival to the stored result."),
	}
	if reg != nil {
		reg.MustRegister(m.accepted, m.attempts, m.callbacks, m.ticks, m.done, m.dead, m.retries, m.latency, m.whole)
	}
	return m
}

// observeQueue registers gauges read at scrape time.
func (m *metrics) observeQueue(q *queue.Queue) {
	if m.reg == nil {
		return
	}
	gauge := func(name, help string, f func(queue.Stats) float64) {
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return f(q.Stats()) }))
	}
	gauge("faasd_sec_async_waiting", "Asynchronous invocations of the cluster that wait.", func(s queue.Stats) float64 { return float64(s.Waiting) })
	gauge("faasd_sec_async_running", "Asynchronous invocations of the cluster that run.", func(s queue.Stats) float64 { return float64(s.Running) })
	gauge("faasd_sec_async_oldest_seconds", "Age of the oldest that waits.", func(s queue.Stats) float64 { return s.Oldest.Seconds() })
	gauge("faasd_sec_async_dead_letters", "Dead letters of the cluster, not a number until they have been counted.", func(s queue.Stats) float64 {
		if s.Dead < 0 {
			return math.NaN()
		}
		return float64(s.Dead)
	})
	gauge("faasd_sec_async_callbacks_owed", "Callbacks that are owed.", func(s queue.Stats) float64 { return float64(s.Deliveries) })
}
