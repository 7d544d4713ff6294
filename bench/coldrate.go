package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	rowRuncRate = "floor/runc-lifecycles"
	burstOf     = 4 // callers of the sustained rate
)

// coldRate measures how many first invocations a second are sustained, and how
// fast an emptied pool fills again, in turns with whole lives of bare containers,
// one after the other.
func (b *bench) coldRate(ctx context.Context) error {
	if err := b.needRunc(ctx); err != nil {
		return err
	}
	watch, err := b.world.watch()
	if err != nil {
		return err
	}
	var runc, cold, refill []float64
	for range b.scaled(6, 2) {
		for range b.scaled(8, 4) {
			if err := watch.quiet(ctx); err != nil {
				return err
			}
			began := time.Now()
			if err := b.runc.start(ctx, "go"); err != nil {
				return err
			}
			if err := b.runc.remove(ctx); err != nil {
				return err
			}
			runc = append(runc, 1/time.Since(began).Seconds())
		}
		rate, err := b.sustained(ctx, watch, b.scaled(40, 24))
		if err != nil {
			return fmt.Errorf("cold/rate: %w", err)
		}
		cold = append(cold, rate)
		if rate, err = b.refill(ctx, watch); err != nil {
			return fmt.Errorf("pool/refills-per-second: %w", err)
		}
		refill = append(refill, rate)
	}
	b.add(rowRuncRate, "1/s", "", runc)
	b.add("cold/rate", "1/s", rowRuncRate, cold)
	b.add("pool/refills-per-second", "1/s", rowRuncRate, refill)
	return nil
}

// sustained is the rate at which n functions get their first answer.
func (b *bench) sustained(ctx context.Context, watch nodeWatch, n int) (float64, error) {
	fns, err := b.deployAll(ctx, n)
	if err != nil {
		return 0, err
	}
	if err := watch.quiet(ctx); err != nil {
		return 0, err
	}
	took, err := b.callAll(ctx, fns, burstOf)
	return float64(n) / took.Seconds(), errors.Join(err, b.removeAll(ctx, fns))
}

// refill empties the pool with as many first calls at once, and counts what is
// made from the last answer until the pool is at rest.
func (b *bench) refill(ctx context.Context, watch nodeWatch) (rate float64, err error) {
	full, err := watch.state(ctx)
	if err != nil {
		return 0, err
	}
	fns, err := b.deployAll(ctx, max(full.depth, 4))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.removeAll(ctx, fns)) }()
	if err := watch.quiet(ctx); err != nil {
		return 0, err
	}
	if _, err := b.callAll(ctx, fns, len(fns)); err != nil {
		return 0, err
	}
	before, err := watch.state(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	made, last := before.made, began
	err = watch.until(ctx, "a pool at rest", 5*time.Millisecond, time.Minute, twice(func(s nodeState) bool {
		if s.made > made {
			made, last = s.made, time.Now()
		}
		return made > before.made && s.creating == 0 && s.depth >= min(s.target, poolMin)
	}))
	if err != nil {
		return 0, err
	}
	return float64(made-before.made) / last.Sub(began).Seconds(), nil
}

func (b *bench) deployAll(ctx context.Context, n int) ([]api.FunctionName, error) {
	fns := make([]api.FunctionName, n)
	for i := range fns {
		var err error
		if fns[i], err = b.world.deploy(ctx, "go"); err != nil {
			return nil, err
		}
		if err := learn(ctx, b.world.client, fns[i]); err != nil {
			return nil, err
		}
	}
	return fns, nil
}

// callAll calls each function once, so many at a time.
func (b *bench) callAll(ctx context.Context, fns []api.FunctionName, workers int) (time.Duration, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, workers)
	began := time.Now()
	for k := range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(fns) {
					return
				}
				if _, err := b.world.hello(ctx, fns[i]); err != nil {
					errs[k] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

func (b *bench) removeAll(ctx context.Context, fns []api.FunctionName) error {
	var errs error
	for _, fn := range fns {
		errs = errors.Join(errs, b.world.client.Remove(ctx, fn))
	}
	return errs
}
