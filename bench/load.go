package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"
)

// latencies calls f in a closed loop over conns workers for d and returns each
// call's time in microseconds, and the rate in calls per second.
func latencies(ctx context.Context, d time.Duration, conns int, f func() error) (us []float64, rate float64, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	until := began.Add(d)
	for range conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var mine []float64
			for time.Now().Before(until) && ctx.Err() == nil {
				t := time.Now()
				if e := f(); e != nil {
					mu.Lock()
					if err == nil {
						err = e
					}
					mu.Unlock()
					return
				}
				mine = append(mine, float64(time.Since(t).Nanoseconds())/1000)
			}
			mu.Lock()
			us = append(us, mine...)
			mu.Unlock()
		}()
	}
	wg.Wait()
	return us, float64(len(us)) / time.Since(began).Seconds(), err
}

// openLoop starts calls at a fixed rate, whether or not earlier ones are done,
// and returns times from when each was due: a slow call delays none of the
// others' clocks.
func openLoop(ctx context.Context, d time.Duration, rate int, f func() error) (us []float64, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	gap := time.Second / time.Duration(rate)
	began := time.Now()
	for i := 0; time.Duration(i)*gap < d && ctx.Err() == nil; i++ {
		due := began.Add(time.Duration(i) * gap)
		time.Sleep(time.Until(due))
		wg.Add(1)
		go func() {
			defer wg.Done()
			e := f()
			took := float64(time.Since(due).Nanoseconds()) / 1000
			mu.Lock()
			defer mu.Unlock()
			if e != nil && err == nil {
				err = e
			}
			us = append(us, took)
		}()
	}
	wg.Wait()
	return us, err
}

func goBuild(ctx context.Context, out, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	return nil
}
