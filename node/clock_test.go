package node

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
)

// A node starts nothing for a coordinator whose clock is another.
func TestClocksFarApartStartNothing(t *testing.T) {
	log := &noted{t: t}
	w := newWorld(t, func(w *world) { w.anomalies = log })
	at := func(f function, clock string) string {
		status, h, body := w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 10), api.HeaderTime, clock)
		if status == 200 {
			return "ok"
		}
		if h.Get(api.HeaderRefused) == "" {
			t.Errorf("%s: not refused: %d %s", clock, status, body)
		}
		return h.Get(api.HeaderRefused)
	}
	ms := func(d time.Duration) string { return fmt.Sprint(time.Now().Add(d).UnixMilli()) }
	for i, clock := range []string{ms(-maxSkew - time.Second), ms(maxSkew + time.Second), "x", "-1", "9223372036854775807"} {
		f := w.known(fmt.Sprintf("f%d", i))
		if got := at(f, clock); got != string(api.CodeSecondCheck) {
			t.Errorf("clock %s: %s", clock, got)
		}
		if got := log.of(anomaly.SecondCheckFailed); len(got) != 2*i+1 || got[2*i].Code != "clock" {
			t.Errorf("clock %s: noted %+v", clock, got)
		}
		if status, h, _ := w.do("POST", api.NodePathAdmit+f.target(), nil, api.HeaderTime, clock); status == 200 || h.Get(api.HeaderRefused) != string(api.CodeSecondCheck) {
			t.Errorf("a ticket: %d, %q", status, h.Get(api.HeaderRefused))
		}
		if got := at(f, ms(0)); got != "ok" {
			t.Errorf("at the same time: %s", got)
		}
		if got := at(f, clock); got != "ok" { // what runs was checked
			t.Errorf("warm: %s", got)
		}
	}
	w.empty()
}

func TestTaskIsCutAtItsDeadline(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	if status, _, _ := w.invoke(f); status != 200 {
		t.Fatal(status)
	}
	w.work = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	began := time.Now()
	code, refused := w.ask(f, api.Needs{Deadline: began.Add(2 * time.Second).UnixMilli()})
	// Without it the bound of all invocations ends it, with the same word.
	if took := time.Since(began); code != "deadline" || refused || took >= w.rev(f).bound {
		t.Errorf("%s after %s of %s, refused %t", code, took, w.rev(f).bound, refused)
	}
}

func TestClockThatLeapsIsDoubtedForAWhile(t *testing.T) {
	var c clock
	wall := time.Now()
	at := func(wallSeconds, monoSeconds float64) bool {
		return c.steady(wall.Add(time.Duration(wallSeconds*1e9)), time.Duration(monoSeconds*1e9))
	}
	for _, step := range []struct {
		wall, mono float64
		steady     bool
	}{
		{0, 0, true}, {1, 1, true}, {11.5, 10, true}, {21, 20, true}, {32, 30, true}, // slewed
		{3632, 31, false}, {3640, 39, false}, {3646.5, 45.9, false}, {3648, 47, true}, // set forward
		{100, 48, false}, {114, 62, false}, {115.5, 63.5, true}, // and back
	} {
		if got := at(step.wall, step.mono); got != step.steady {
			t.Errorf("wall %v, monotonic %v: steady %t", step.wall, step.mono, got)
		}
	}
}
