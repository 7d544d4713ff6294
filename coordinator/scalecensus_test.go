package coordinator

import (
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// Who lists functions asks nodes for no CPU time. A function that is scaled by it
// must not take that for none: with the next answer all that it ever used would have
// been used in a moment.
func TestWhoListsFunctionsTakesNoCPUTimeFromThoseScaledByIt(t *testing.T) {
	w := newWorld(t, 1)
	rev := w.fn.Revision
	const used = int64(time.Hour / time.Microsecond)
	w.nodes["node-1"].on(&w.nodes["node-1"].other, func(rw http.ResponseWriter, r *http.Request) {
		s := api.ReplicaStatus{Function: "f.ns", Revision: rev, Ready: 1}
		if r.URL.Query().Has(api.NodeQueryCPU) {
			s.CPUMicros = used
		}
		json.NewEncoder(rw).Encode([]api.ReplicaStatus{s})
	})
	s, f := w.c.scaler, newScaled()
	for i, cpu := range []bool{true, false, true, false, true} {
		n := *w.c.count(0, cpu)
		if cpu {
			if i > 0 {
				n = *w.c.count(time.Hour, true) // what was asked for others is not enough
			}
			if got := n.nodes["node-1"].of(rev).CPUMicros; got != used {
				t.Fatalf("census %d tells of %d µs, want %d", i, got, used)
			}
		}
		n.asked = time.Unix(int64(i), 0)
		if l := s.loadOf(&store.Function{Revision: rev}, f, &n); l.CPU != 0 {
			t.Errorf("look %d: %v millicores, and nothing was used since the first", i, l.CPU)
		}
	}
	w.c.count(0, false)
	if got := w.c.count(time.Hour, true).nodes["node-1"].of(rev).CPUMicros; got != used {
		t.Errorf("a census without CPU time was taken for one with it: %d µs", got)
	}
}

// While a node does not answer those that come for a census share one.
func TestOneCensusServesThoseThatWaitedForIt(t *testing.T) {
	w := newWorld(t, 1)
	var questions atomic.Int64
	w.nodes["node-1"].on(&w.nodes["node-1"].other, func(_ http.ResponseWriter, r *http.Request) {
		questions.Add(1)
		<-r.Context().Done()
	})
	const callers = 8
	var all sync.WaitGroup
	for range callers {
		all.Go(func() { w.c.count(controlEvery, false) })
	}
	all.Wait()
	if n := questions.Load(); n > callers/2 {
		t.Errorf("the node was asked %d times for %d callers that came together", n, callers)
	}
}

// What a node tells of a while in which it did not answer was not done in a moment.
func TestANodeThatAnswersAgainIsNotTakenForABusyOne(t *testing.T) {
	w := newWorld(t, 1)
	f, began := newScaled(), time.Now()
	look := func(at time.Duration, answered time.Duration, served uint64) float64 {
		said := tally{at: began.Add(answered), all: map[string]api.ReplicaStatus{"r": {Revision: "r", Served: served}}}
		l := w.c.scaler.loadOf(&store.Function{Revision: "r"}, f, &census{asked: began.Add(at), nodes: map[string]tally{"node-1": said}})
		return l.Rate
	}
	const second = time.Second
	for i := range 20 { // a hundred each second
		look(time.Duration(i)*second, time.Duration(i)*second, uint64(100*i))
	}
	for i := range 8 {
		look(time.Duration(20+i)*second, 19*second, 1900)
	}
	if rate := look(28*second, 28*second, 2800); rate > 100 {
		t.Errorf("%v calls each second, where there were never more than 100", rate)
	}
}
