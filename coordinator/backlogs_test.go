package coordinator

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestCallsThatWaitAreAMetricOfTheirFunction(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, 1, func(w *world) { w.reg, w.cfg.QueueTimeout = reg, 20*time.Second })
	node := w.nodes["node-1"]
	serve := *node.invoke.Load()
	if got := gauges(t, reg, "faasd_sec_function_waiting_calls", "function"); len(got) != 0 {
		t.Errorf("nobody has called: %v", got)
	}
	if got, ok := gauges(t, reg, "faasd_sec_longest_wait_seconds", "function")[""]; !ok || got != 0 {
		t.Errorf("nobody has called: %v", got)
	}
	node.on(&node.invoke, refuses(api.CodeNoRoom))
	began := time.Now()
	var wg sync.WaitGroup
	for range 3 {
		msg := w.message(10, time.Minute)
		wg.Go(func() {
			if a := w.send(msg); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	w.eventually("three wait", func() bool { return gauges(t, reg, "faasd_sec_function_waiting_calls", "function")["f.ns"] == 3 })
	w.eventually("for a while", func() bool {
		return gauges(t, reg, "faasd_sec_function_longest_wait_seconds", "function")["f.ns"] > 0.2
	})
	// A call whose attempt takes its time is left out meanwhile, so that the first of
	// the two numbers may be of an older call than the second.
	w.eventually("the oldest of all is f.ns's", func() bool {
		one, all := gauges(t, reg, "faasd_sec_function_longest_wait_seconds", "function")["f.ns"], gauges(t, reg, "faasd_sec_longest_wait_seconds", "function")[""]
		return one > 0.2 && all >= one && all <= time.Since(began).Seconds()
	})
	node.on(&node.invoke, serve)
	wg.Wait()
	if got := gauges(t, reg, "faasd_sec_function_waiting_calls", "function"); len(got) != 0 {
		t.Errorf("nobody waits any more: %v", got)
	}
}

// TestMetricsTellOfTheLongestWaits has more functions wait than there may be series.
func TestMetricsTellOfTheLongestWaits(t *testing.T) {
	q, now := newWaiting(1000), time.Now()
	for i := range maxBacklogs + 50 {
		name := api.FunctionName(fmt.Sprintf("f%04d.ns", i))
		for k := range 2 { // the younger of the two counts for nothing
			turn := q.turn(waiter{name: name, owner: "o", since: now.Add(-time.Duration(i+1)*time.Second + time.Duration(k)*time.Millisecond)})
			q.mu.Lock()
			turn.trying, turn.timer = true, time.NewTimer(time.Hour)
			q.mu.Unlock()
			defer turn.timer.Stop()
		}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(backlogs{q})
	calls, waits := gauges(t, reg, "faasd_sec_function_waiting_calls", "function"), gauges(t, reg, "faasd_sec_function_longest_wait_seconds", "function")
	if len(calls) != maxBacklogs || len(waits) != maxBacklogs {
		t.Fatalf("%d and %d series", len(calls), len(waits))
	}
	for name, n := range calls {
		if n != 2 || waits[name] < 51 || strings.Compare(name, "f0050.ns") < 0 {
			t.Errorf("%s: %v calls, for %v s", name, n, waits[name])
		}
	}
	if all := gauges(t, reg, "faasd_sec_longest_wait_seconds", "function")[""]; all < maxBacklogs+50 || all > maxBacklogs+60 {
		t.Errorf("the longest wait of all is %v s", all)
	}
}
