package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// contender is one of several things that are measured in turns, so that what
// the machine does meanwhile hits all of them.
type contender struct {
	row   string
	floor string // row, "" for none
	unit  string // of times: "us" or "ms"
	call  func(context.Context) error
	timed func(context.Context) (time.Duration, error) // in place of call: measures by itself
}

func (c contender) scaled(d time.Duration) float64 {
	if c.unit == "ms" {
		return float64(d.Nanoseconds()) / 1e6
	}
	return float64(d.Nanoseconds()) / 1e3
}

// load is the calls of one contender in one turn.
type load struct {
	took []time.Duration
	rate float64 // calls per second
}

// closedLoop calls f over conns workers for d, each as soon as its last one
// ended. It returns the first error with what was measured until then.
func closedLoop(ctx context.Context, d time.Duration, conns int, f func(context.Context) error) (load, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var l load
	var first error
	began := time.Now()
	for range conns {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for begin := began; err == nil && begin.Sub(began) < d; {
				if err = ctx.Err(); err != nil {
					break
				}
				if err = f(ctx); err == nil {
					now := time.Now()
					mine = append(mine, now.Sub(begin))
					begin = now
				}
			}
			mu.Lock()
			defer mu.Unlock()
			l.took = append(l.took, mine...)
			if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	l.rate = float64(len(l.took)) / time.Since(began).Seconds()
	return l, first
}

// inTurns gives each contender a slice of every round, after a short one that
// does not count. One that fails has no more turns and no row.
func inTurns(ctx context.Context, r *report, list []contender, rounds, conns int, slice time.Duration) (times, rates [][]float64) {
	times, rates = make([][]float64, len(list)), make([][]float64, len(list))
	out := make([]bool, len(list))
	for round := -1; round < rounds; round++ {
		for i, c := range list {
			if out[i] || ctx.Err() != nil {
				continue
			}
			d := slice
			if round < 0 {
				d = slice / 5
			}
			l, err := closedLoop(ctx, d, conns, c.call)
			if err != nil {
				out[i] = true
				r.fail(c.row, err)
				continue
			}
			if round < 0 {
				continue
			}
			for _, d := range l.took {
				times[i] = append(times[i], c.scaled(d))
			}
			rates[i] = append(rates[i], l.rate)
		}
	}
	for i := range list {
		if out[i] {
			times[i], rates[i] = nil, nil
		}
	}
	return times, rates
}

// turnRows measures latencies in turns, and rates where several connections are
// at work.
func turnRows(ctx context.Context, r *report, list []contender, rounds, conns int, slice time.Duration, rate func(row string) string) error {
	times, rates := inTurns(ctx, r, list, rounds, conns, slice)
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, c := range list {
		if times[i] == nil {
			continue
		}
		r.add(c.row, c.unit, c.floor, times[i])
		floor := ""
		if c.floor != "" {
			floor = rate(c.floor)
		}
		r.add(rate(c.row), "req/s", floor, rates[i])
	}
	return nil
}

// trial is one thing that is measured a single call at a time.
type trial struct {
	contender
	every  int                         // in how many rounds it has one turn, 0 for each round
	before func(context.Context) error // not timed, nil for nothing
	after  func(context.Context) error // not timed, nil for nothing; also after a failure
}

// errNotIt means that a call went well and was not what the row is about: it is
// made again.
var errNotIt = errors.New("not what is measured")

// inTrials makes n rounds of single calls in turns, after one that does not count.
func inTrials(ctx context.Context, r *report, list []trial, n int) error {
	times := make([][]float64, len(list))
	out := make([]bool, len(list))
	for round := -1; round < n; round++ {
		for k, t := range list {
			if out[k] || round > 0 && t.every > 1 && round%t.every != 0 {
				continue
			}
			took, err := t.once(ctx)
			for again := 0; errors.Is(err, errNotIt) && again < 10; again++ {
				took, err = t.once(ctx)
			}
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				out[k] = true
				r.fail(t.row, fmt.Errorf("call %d: %w", round+1, err))
			case round >= 0:
				times[k] = append(times[k], t.scaled(took))
			}
		}
	}
	for k, t := range list {
		if !out[k] {
			r.add(t.row, t.unit, t.floor, times[k])
		}
	}
	return nil
}

func (t trial) once(ctx context.Context) (took time.Duration, err error) {
	if t.after != nil {
		defer func() { err = errors.Join(err, t.after(ctx)) }()
	}
	if t.before != nil {
		if err := t.before(ctx); err != nil {
			return 0, err
		}
	}
	if t.timed != nil {
		return t.timed(ctx)
	}
	begin := time.Now()
	err = t.call(ctx)
	return time.Since(begin), err
}
