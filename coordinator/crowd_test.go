package coordinator

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// crowd is invocations that compete for slots, as place does it.
type crowd struct {
	w     *waiting
	slots atomic.Int64 // free, of any function
	tries atomic.Int64
}

func (c *crowd) take() bool {
	c.tries.Add(1)
	for {
		n := c.slots.Load()
		if n == 0 {
			return false
		}
		if c.slots.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// one gets a slot, calls during, gives the slot back.
func (c *crowd) one(ctx context.Context, name api.FunctionName, during func()) error {
	queued := false
	var turn *turn
	for {
		from := c.w.next()
		from.turn = turn
		if c.take() {
			during()
			c.slots.Add(1)
			c.w.ended(name)
			c.w.signal()
			if queued {
				c.w.leave("o")
			}
			return nil
		}
		if !queued {
			if err := c.w.enter("o"); err != nil {
				return err
			}
			queued, turn = true, c.w.turn(waiter{name: name, owner: "o"})
			defer turn.end()
			continue
		}
		if err := c.w.wait(ctx, from, nil); err != nil {
			c.w.leave("o")
			return err
		}
	}
}

// run starts the queue's own goroutine and ends it with the test.
func (c *crowd) run(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.w.follow(ctx, &fakeMesh{view: &api.ClusterView{}}) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func TestACrowdIsServedAndNoFunctionIsLeftBehind(t *testing.T) {
	c := &crowd{w: newWaiting(2000)}
	c.run(t)
	var mu sync.Mutex
	var order []api.FunctionName
	var all sync.WaitGroup
	call := func(name api.FunctionName) {
		all.Go(func() {
			err := c.one(t.Context(), name, func() {
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				time.Sleep(time.Millisecond) // holds its slot
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	for range 400 {
		call("many.ns")
	}
	for f := range 5 {
		for range 4 {
			call(api.FunctionName(fmt.Sprintf("few%d.ns", f)))
		}
	}
	for deadline := time.Now().Add(30 * time.Second); c.w.count.Load() < 420 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	c.slots.Store(2)
	c.w.signal()
	all.Wait()
	last := 0
	for i, name := range order {
		if name != "many.ns" {
			last = i
		}
	}
	// Taken in turn the 20 of the others are through after some 40; the slack
	// is for attempts that overlap on a busy machine.
	if len(order) != 420 || last > 300 {
		t.Errorf("%d served; the last of those with few callers came as number %d", len(order), last)
	}
	if n := c.tries.Load(); n > 420*10 {
		t.Errorf("%d attempts for 420 invocations", n)
	}
	if !c.w.idle() || c.w.count.Load() != 0 {
		t.Errorf("left behind: %d", c.w.count.Load())
	}
}

// What waiting costs an invocation, attempts in vain included: 200 callers of
// 20 functions and four slots, so that all but a few wait.
func BenchmarkQueued(b *testing.B) {
	c := &crowd{w: newWaiting(2000)}
	c.run(b)
	c.slots.Store(4)
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		b.Fatal(err)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	for i := range 200 {
		name := api.FunctionName(fmt.Sprintf("f%d.ns", i%20))
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if err := c.one(b.Context(), name, func() { time.Sleep(100 * time.Microsecond) }); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(used)/1000/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(c.tries.Load())/float64(b.N), "tries/op")
}

// What a call that does not wait pays for the queue.
func BenchmarkQueueUnused(b *testing.B) {
	w := newWaiting(10)
	b.ReportAllocs()
	for b.Loop() {
		m := w.next()
		m.turn = nil
		w.ended("f.ns")
		w.signal()
	}
}
