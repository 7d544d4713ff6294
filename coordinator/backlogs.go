package coordinator

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
)

// maxBacklogs are the functions of which metrics tell what waits: as many as there
// may be, each of them a series at Prometheus.
const maxBacklogs = 200

// backlogs tells at scrape time what waits for room here, function by function: of
// those whose oldest call has waited longest. A function of which nothing waits is
// not there.
type backlogs struct{ queue *waiting }

var (
	callsWaiting = prometheus.NewDesc("faasd_sec_function_waiting_calls", "Calls of a function that wait for room here; of the functions whose oldest has waited longest.", []string{"function"}, nil)
	longestWait  = prometheus.NewDesc("faasd_sec_function_longest_wait_seconds", "Time that the oldest of a function's calls has waited for room here.", []string{"function"}, nil)
	longestOfAll = prometheus.NewDesc("faasd_sec_longest_wait_seconds", "Time that the oldest of all calls has waited for room here, 0 where none waits.", nil, nil)
)

// Describe implements prometheus.Collector.
func (b backlogs) Describe(ch chan<- *prometheus.Desc) {
	ch <- callsWaiting
	ch <- longestWait
	ch <- longestOfAll
}

// Collect implements prometheus.Collector.
func (b backlogs) Collect(ch chan<- prometheus.Metric) {
	all, now := b.queue.byFunction(), time.Now()
	names := slices.SortedFunc(maps.Keys(all), func(x, y api.FunctionName) int { return all[x].since.Compare(all[y].since) })
	longest := 0.0
	for i, name := range names[:min(len(names), maxBacklogs)] {
		waited := now.Sub(all[name].since).Seconds()
		if i == 0 {
			longest = waited
		}
		ch <- prometheus.MustNewConstMetric(callsWaiting, prometheus.GaugeValue, float64(all[name].calls), string(name))
		ch <- prometheus.MustNewConstMetric(longestWait, prometheus.GaugeValue, waited, string(name))
	}
	ch <- prometheus.MustNewConstMetric(longestOfAll, prometheus.GaugeValue, longest)
}
