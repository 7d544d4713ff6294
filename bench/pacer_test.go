package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// steps is a clock that only sleeping moves on, and then to late after the
// time asked for.
type steps struct {
	mu   sync.Mutex
	now  time.Time
	late time.Duration
	due  []time.Time
}

func (s *steps) Now() time.Time { s.mu.Lock(); defer s.mu.Unlock(); return s.now }

func (s *steps) Sleep(ctx context.Context, until time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due = append(s.due, until)
	if until.After(s.now) {
		s.now = until.Add(s.late)
	}
	return ctx.Err()
}

func TestCallsAreDueAtTheRate(t *testing.T) {
	c := &steps{now: time.Unix(100, 0)}
	if _, err := openLoop(t.Context(), c, 5, 100, 10, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for i, at := range c.due {
		if want := time.Unix(100, 0).Add(time.Duration(i) * 10 * time.Millisecond); !at.Equal(want) {
			t.Errorf("call %d was due %v, want %v", i, at, want)
		}
	}
	if len(c.due) != 5 {
		t.Errorf("%d calls were due", len(c.due))
	}
}

// The server stalls for 50 ms while calls are due every millisecond: each of
// those that were due meanwhile has waited, and none is left out.
func TestAStallCountsForAllThatWereDue(t *testing.T) {
	var mu sync.Mutex
	var until time.Time
	began := time.Now()
	var first sync.Once
	took, err := openLoop(t.Context(), wall{}, 100, 1000, 1000, func(context.Context) error {
		first.Do(func() { mu.Lock(); until = time.Now().Add(50 * time.Millisecond); mu.Unlock() })
		mu.Lock()
		wait := time.Until(until)
		mu.Unlock()
		time.Sleep(wait)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(took) != 100 {
		t.Fatalf("%d times of 100 calls", len(took))
	}
	slow := 0
	for _, d := range took {
		if d >= 10*time.Millisecond {
			slow++
		}
	}
	if slow < 30 { // about 40 were due in the stall's first 40 ms
		t.Errorf("only %d calls saw the stall, in %v", slow, time.Since(began))
	}
}

// A pacer that oversleeps charges it to the call: the caller waited.
func TestLateStartsCount(t *testing.T) {
	c := &steps{now: time.Unix(100, 0), late: 3 * time.Millisecond}
	took, err := openLoop(t.Context(), c, 3, 100, 10, func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if last := took[2]; last < 3*time.Millisecond {
		t.Errorf("the last call began 3 ms late and took %v", last)
	}
}

func TestOpenLoopEndsWithTheFirstError(t *testing.T) {
	boom := errors.New("boom")
	var calls atomic.Int64
	_, err := openLoop(t.Context(), wall{}, 1000, 1000, 10, func(context.Context) error {
		if calls.Add(1) == 3 {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) {
		t.Fatalf("ended with %v", err)
	}
	if calls.Load() > 100 {
		t.Errorf("%d calls after the error", calls.Load())
	}
}

func TestOpenLoopIsBounded(t *testing.T) {
	release := make(chan struct{})
	time.AfterFunc(200*time.Millisecond, func() { close(release) })
	var under atomic.Int64
	_, err := openLoop(t.Context(), wall{}, 10_000, 10_000, 7, func(context.Context) error { under.Add(1); <-release; return nil })
	if !errors.Is(err, errOverrun) {
		t.Fatalf("ended with %v", err)
	}
	if under.Load() > 7 {
		t.Errorf("%d calls were under way at once", under.Load())
	}
}

func TestOpenLoopEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := openLoop(ctx, wall{}, 100, 1, 10, func(context.Context) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("ended with %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v to end", took)
	}
}
