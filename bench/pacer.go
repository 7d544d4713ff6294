package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// clock is the time as the pacer sees it.
type clock interface {
	Now() time.Time
	Sleep(ctx context.Context, until time.Time) error
}

// wall is the machine's clock.
type wall struct{}

func (wall) Now() time.Time { return time.Now() }

// Sleep wakes at until. A timer wakes late by what the scheduler likes, and that
// is part of what is measured: the pacer catches up at once, it skips nothing.
func (wall) Sleep(ctx context.Context, until time.Time) error {
	d := time.Until(until)
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errOverrun means that calls piled up beyond any use of going on.
var errOverrun = errors.New("more calls are under way than the open loop allows: the rate is far above what is served")

// openLoop starts n calls at a fixed rate whether or not earlier ones are done,
// and returns each one's time from the moment it was due: a slow call delays
// nobody else's clock, so that nothing is omitted for being late.
func openLoop(ctx context.Context, c clock, n int, rate float64, maxUnderWay int, call func(context.Context) error) ([]time.Duration, error) {
	if rate <= 0 || n <= 0 {
		return nil, fmt.Errorf("open loop: %d calls at %g per second", n, rate)
	}
	took := make([]time.Duration, n)
	slots := make(chan struct{}, maxUnderWay)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
	}
	began := c.Now()
	for i := range n {
		due := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		if err := c.Sleep(ctx, due); err != nil {
			fail(err)
			break
		}
		select {
		case slots <- struct{}{}:
		default:
			fail(errOverrun)
		}
		mu.Lock()
		over := first != nil
		mu.Unlock()
		if over {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := call(ctx); err != nil {
				fail(err)
			}
			took[i] = c.Now().Sub(due)
		})
	}
	wg.Wait()
	if first != nil {
		return nil, first
	}
	return took, nil
}
