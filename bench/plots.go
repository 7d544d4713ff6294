package main

import (
	"fmt"
	"strconv"
	"strings"
)

// plot is one picture of a run.
type plot struct{ file, title, svg string }

// plots are the pictures that the run has the rows for.
func (r *report) plots() []plot {
	var out []plot
	for _, f := range []func() (plot, bool){r.coldPlot, r.throughputPlot, r.openLoopPlot, r.cpuPlot} {
		if p, ok := f(); ok {
			out = append(out, p)
		}
	}
	return out
}

// named finds a row.
func (r *report) named(name string) (row, bool) {
	for _, w := range r.Rows {
		if w.Name == name {
			return w, true
		}
	}
	return row{}, false
}

// coldPlot shows the distributions of cold starts.
func (r *report) coldPlot() (plot, bool) {
	c := chart{title: "First call of a function: how many are done after so long",
		x: axis{label: "milliseconds, logarithmic", log: true}, y: axis{label: "percent", max: 100}}
	for _, s := range []struct {
		row, name string
		colour    int
		dash      bool
	}{
		{"cold/clone-floor/go", "kernel alone, Go", 0, true}, {"cold/pool-hit/c", "pooled, C", 3, false}, {"cold/pool-hit/go", "pooled, Go", 1, false},
		{"cold/pool-hit/python", "pooled, Python", 4, false}, {"cold/pool-miss/go", "pool empty, Go", 5, false}, {"cold/plain/c", "no pool, C", 3, false},
		{"cold/plain/go", "no pool, Go", 1, false}, {"cold/plain/python", "no pool, Python", 4, false}, {"cold/runc-floor/go", "bare runc, Go", 2, true},
	} {
		if points := r.curves[s.row]; len(points) > 0 {
			c.series = append(c.series, series{name: s.name, colour: s.colour, dash: s.dash, points: ecdf(points)})
		}
	}
	return plot{"cold.svg", c.title, c.svg()}, len(c.series) > 1
}

// ecdf turns evenly spaced quantiles into shares of 100.
func ecdf(sorted []float64) [][2]float64 {
	out := make([][2]float64, len(sorted))
	for i, v := range sorted {
		out[i] = [2]float64{v, 100 * float64(i+1) / float64(len(sorted))}
	}
	return out
}

// throughputPlot shows rates over connections.
func (r *report) throughputPlot() (plot, bool) {
	c := chart{title: "Warm calls of 1 KiB a second, by connections",
		x: axis{label: "connections, logarithmic", log: true, ticks: []float64{1, 16, 64}}, y: axis{label: "calls per second"}}
	for _, s := range []struct {
		row, name string
		colour    int
		dash      bool
	}{{"floor/two-hop", "floor, two hops", 0, true}, {"plain", "plain function", 2, false}, {"gateway", "sealed, node's gateway", 3, false}, {"sealed", "sealed", 1, false}} {
		var points [][2]float64
		for _, conns := range []float64{1, 16, 64} {
			if w, ok := r.named(fmt.Sprintf("throughput/%s/1KiB/c%g", s.row, conns)); ok {
				points = append(points, [2]float64{conns, w.Median})
			}
		}
		if len(points) > 1 {
			c.series = append(c.series, series{name: s.name, colour: s.colour, dash: s.dash, dots: true, points: points})
		}
	}
	return plot{"throughput.svg", c.title, c.svg()}, len(c.series) > 1
}

// openLoopPlot shows latencies over rates.
func (r *report) openLoopPlot() (plot, bool) {
	c := chart{title: "Latency at a fixed rate, from when each call was due",
		x: axis{label: "calls per second, logarithmic", log: true}, y: axis{label: "microseconds, logarithmic", log: true}}
	for _, s := range []struct {
		prefix, name string
		colour       int
	}{{"floor/openloop/two-hop/1KiB/r", "floor, two hops", 0}, {"openloop/sealed/1KiB/r", "sealed", 1}} {
		var median, tail [][2]float64
		for _, w := range r.Rows {
			rest, ok := strings.CutPrefix(w.Name, s.prefix)
			rate, err := strconv.ParseFloat(rest, 64)
			if !ok || err != nil {
				continue
			}
			median, tail = append(median, [2]float64{rate, w.Median}), append(tail, [2]float64{rate, w.P99})
		}
		if len(median) > 1 {
			c.series = append(c.series, series{name: s.name + ", median", colour: s.colour, dots: true, points: median},
				series{name: s.name + ", p99", colour: s.colour, dash: true, dots: true, points: tail})
		}
	}
	return plot{"openloop.svg", c.title, c.svg()}, len(c.series) > 1
}

// cpuPlot shows where a call's CPU time goes.
func (r *report) cpuPlot() (plot, bool) {
	title := "CPU time of one sealed warm call of 1 KiB"
	ours := bar{name: "sealed"}
	for _, p := range cpuParts() {
		if w, ok := r.named("cpu/" + p); ok {
			ours.parts = append(ours.parts, part{p, w.Median})
		}
	}
	var bars []bar
	if w, ok := r.named("floor/cpu/two-hop/1KiB"); ok {
		bars = append(bars, bar{name: "floor, two hops", parts: []part{{"all of the floor", w.Median}}})
	}
	bars = append(bars, ours)
	return plot{"cpu.svg", title, stackedBars(title, "microseconds per call", bars)}, len(ours.parts) > 0
}
