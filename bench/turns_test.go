package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestTrialsTakeTurns(t *testing.T) {
	r := newReport("m", io.Discard)
	var order strings.Builder
	one := func(name string, every int) trial {
		note := func(s string) func(context.Context) error {
			return func(context.Context) error { order.WriteString(s); return nil }
		}
		return trial{contender: contender{row: name, unit: "ms", call: note(name)}, every: every, before: note("("), after: note(")")}
	}
	if err := inTrials(t.Context(), r, []trial{one("a", 0), one("b", 2)}, 3); err != nil {
		t.Fatal(err)
	}
	if got, want := order.String(), "(a)(b)(a)(b)(a)(a)(b)"; got != want {
		t.Errorf("the turns were %s, want %s", got, want)
	}
	a, _ := r.named("a")
	b, _ := r.named("b")
	if a.N != 3 || b.N != 2 {
		t.Errorf("%d and %d samples: the first turns do not count", a.N, b.N)
	}
}

func TestAFailedTrialHasNoRowAndStopsNoOther(t *testing.T) {
	r := newReport("m", io.Discard)
	cleaned := 0
	bad := trial{contender: contender{row: "bad", call: func(context.Context) error { return errors.New("boom") }},
		after: func(context.Context) error { cleaned++; return nil }}
	good := trial{contender: contender{row: "good", call: func(context.Context) error { return nil }}}
	if err := inTrials(t.Context(), r, []trial{bad, good}, 4); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.named("bad"); ok || len(r.failed) != 1 || cleaned != 1 {
		t.Errorf("row %v, failures %v, cleaned %d times", ok, r.failed, cleaned)
	}
	if w, _ := r.named("good"); w.N != 4 {
		t.Errorf("the other one has %d samples", w.N)
	}
}

func TestWhatWasNotItIsTriedAgain(t *testing.T) {
	r := newReport("m", io.Discard)
	calls := 0
	odd := trial{contender: contender{row: "odd", call: func(context.Context) error {
		if calls++; calls%3 != 0 {
			return errNotIt
		}
		return nil
	}}}
	never := trial{contender: contender{row: "never", call: func(context.Context) error { return errNotIt }}}
	if err := inTrials(t.Context(), r, []trial{odd, never}, 2); err != nil {
		t.Fatal(err)
	}
	if w, _ := r.named("odd"); w.N != 2 || calls != 9 {
		t.Errorf("%d samples of %d calls", w.N, calls)
	}
	if len(r.failed) != 1 || r.failed[0].Row != "never" {
		t.Errorf("failed: %v", r.failed)
	}
}

func TestATrialMayMeasureByItself(t *testing.T) {
	r := newReport("m", io.Discard)
	own := trial{contender: contender{row: "own", unit: "ms", timed: func(context.Context) (time.Duration, error) { return 7 * time.Millisecond, nil }}}
	if err := inTrials(t.Context(), r, []trial{own}, 1); err != nil {
		t.Fatal(err)
	}
	if w, _ := r.named("own"); w.Median != 7 {
		t.Errorf("it took %v ms", w.Median)
	}
}

func TestClosedLoopKeepsItsWorkersBusy(t *testing.T) {
	var now, most atomic.Int64
	l, err := closedLoop(t.Context(), 50*time.Millisecond, 4, func(context.Context) error {
		most.Store(max(most.Load(), now.Add(1)))
		time.Sleep(time.Millisecond)
		now.Add(-1)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if most.Load() > 4 || len(l.took) == 0 || l.rate <= 0 {
		t.Errorf("%d at once, %d calls, %v per second", most.Load(), len(l.took), l.rate)
	}
	for _, d := range l.took {
		if d < time.Millisecond {
			t.Fatalf("a call of a millisecond took %v", d)
		}
	}
}

func TestALoadThatFailsHasNoRow(t *testing.T) {
	r := newReport("m", io.Discard)
	list := []contender{
		{row: "floor", unit: "us", call: func(context.Context) error { return nil }},
		{row: "bad", floor: "floor", unit: "us", call: func(context.Context) error { return errors.New("boom") }},
	}
	if err := turnRows(t.Context(), r, list, 2, 2, 5*time.Millisecond, throughputRow); err != nil {
		t.Fatal(err)
	}
	if w, ok := r.named("throughput/floor"); !ok || w.N != 2 {
		t.Errorf("the rate has %d samples", w.N)
	}
	if _, ok := r.named("bad"); ok || len(r.failed) != 1 {
		t.Errorf("failed: %v", r.failed)
	}
}
