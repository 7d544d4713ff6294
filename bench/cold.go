package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// How a reply's header says that its sandbox was found.
const (
	startPooled = "pooled"
	startCold   = "cold"
)

// cold measures first invocations. The caller knows the function's descriptor,
// as one does that called it before; nothing of the function runs, and neither
// end has a grant. The clock runs from the call of the SDK to the end of the
// opened reply: seal, place, sandbox, key release, start of the function, and
// two public-key grants. The floors end at the program's first byte.
func (b *bench) cold(ctx context.Context) error {
	if err := b.needRunc(ctx); err != nil {
		return err
	}
	n := b.scaled(110, 6)
	watch, err := b.world.watch()
	if err != nil {
		return err
	}
	clone := &cloneFloor{}
	if clone.bell, err = newDoorbell(filepath.Join(b.scratch, "clone")); err != nil {
		return err
	}
	defer clone.bell.close()
	var list []trial
	for _, p := range b.programs {
		if p.file != "" {
			list = append(list, trial{contender: contender{row: "cold/clone-floor/" + p.lang, unit: "ms", call: func(ctx context.Context) error {
				return clone.start(ctx, p.file)
			}}, before: watch.quiet})
		}
		list = append(list, trial{contender: contender{row: "cold/runc-floor/" + p.lang, unit: "ms", call: func(ctx context.Context) error {
			return b.runc.start(ctx, p.lang)
		}}, every: rare(b.quick, 2), before: watch.quiet, after: b.runc.remove})
	}
	for _, p := range b.programs {
		list = append(list, b.firstCall(b.world, watch, p.lang, "cold/pool-hit/"+p.lang, startPooled))
	}
	// The same of a function whose replicas a policy counts: what the count costs.
	policy := api.DefaultScale()
	list = append(list, b.firstCall(b.world, watch, "go", "cold/scale-from-zero/go", startPooled, func(d *client.Deployment) { d.Scale = &policy }))
	for _, side := range []struct {
		name  string
		args  []string
		trial func(w *world, watch nodeWatch) trial
	}{
		{"one", []string{"-pool-min", "1", "-pool-max", "1"}, b.poolMiss},
		{"none", []string{"-pool-max", "0"}, func(w *world, watch nodeWatch) trial {
			return b.firstCall(w, watch, "go", "cold/no-pool/go", startCold)
		}},
	} {
		w, err := b.newWorld(ctx, side.name, side.args...)
		if err != nil {
			return err
		}
		defer w.close()
		watch, err := w.watch()
		if err != nil {
			return err
		}
		t := side.trial(w, watch)
		t.every = rare(b.quick, 3)
		list = append(list, t)
	}
	return inTrials(ctx, b.report, list, n)
}

// rare gives what takes long, and whose tail is not looked at, fewer turns in a
// full run.
func rare(quick bool, every int) int {
	if quick {
		return 1
	}
	return every
}

// poolMiss has two functions called at once where one sandbox waits: one of them
// takes it, and the other's call, which is the one that counts, waits for a
// sandbox to be made.
func (b *bench) poolMiss(w *world, watch nodeWatch) trial {
	var fns [2]api.FunctionName
	return trial{
		contender: contender{row: "cold/pool-miss/go", floor: "cold/runc-floor/go", unit: "ms", timed: func(ctx context.Context) (time.Duration, error) {
			var took [2]time.Duration
			var start [2]string
			var errs [2]error
			var wg sync.WaitGroup
			for i, fn := range fns {
				wg.Go(func() {
					began := time.Now()
					meta, err := w.hello(ctx, fn)
					took[i], start[i], errs[i] = time.Since(began), meta.Start, err
				})
			}
			wg.Wait()
			if err := errors.Join(errs[:]...); err != nil {
				return 0, err
			}
			for i := range fns {
				if start[i] == startCold && start[1-i] == startPooled {
					return took[i], nil
				}
			}
			return 0, fmt.Errorf("%w: the starts were %q", errNotIt, start)
		}},
		before: func(ctx context.Context) (err error) {
			for i := range fns {
				if fns[i], err = w.deploy(ctx, "go"); err != nil {
					return err
				}
				if err := learn(ctx, w.client, fns[i]); err != nil {
					return err
				}
			}
			return watch.quiet(ctx)
		},
		after: func(ctx context.Context) error {
			return errors.Join(w.client.Remove(ctx, fns[0]), w.client.Remove(ctx, fns[1]))
		},
	}
}

// firstCall is the first invocation of a function that was deployed for it and
// is removed afterwards. It counts if its sandbox was found as start says.
func (b *bench) firstCall(w *world, watch nodeWatch, lang, name, start string, change ...func(*client.Deployment)) trial {
	var fn api.FunctionName
	return trial{
		contender: contender{row: name, floor: "cold/runc-floor/" + lang, unit: "ms", call: func(ctx context.Context) error {
			meta, err := w.hello(ctx, fn)
			if err == nil && meta.Start != start {
				err = fmt.Errorf("%w: the start was %q and not %q", errNotIt, meta.Start, start)
			}
			return err
		}},
		before: func(ctx context.Context) (err error) {
			if fn, err = w.deploy(ctx, lang, change...); err != nil {
				return err
			}
			if err := learn(ctx, w.client, fn); err != nil {
				return err
			}
			return watch.quiet(ctx)
		},
		after: func(ctx context.Context) error { return w.client.Remove(ctx, fn) },
	}
}

// errOwn is a body's error by which learn ends an invocation.
var errOwn = errors.New("no body")

type noBody struct{}

func (noBody) Read([]byte) (int, error) { return 0, errOwn }

// learn has the SDK fetch and verify a function's descriptor without calling
// it: an invocation whose body cannot be read ends there.
func learn(ctx context.Context, c *client.Client, fn api.FunctionName) error {
	_, err := c.Invoke(ctx, fn, client.Request{Body: noBody{}})
	if !errors.Is(err, errOwn) {
		return fmt.Errorf("learn the descriptor of %s: %w", fn.Short(), errors.Join(err, errors.New("the invocation did not end at its body")))
	}
	return nil
}
