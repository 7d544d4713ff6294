package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// balanced checks the books: what is reserved is what sandboxes hold and what
// the pool needs for its boxes or those who wait, and fits.
func (w *world) balanced() error {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	p := &w.n.pool
	sum := overhead(max(p.boxes, p.queue.len()))
	if sum != p.held {
		return fmt.Errorf("the pool holds %+v for %d boxes and %d who wait", p.held, p.boxes, p.queue.len())
	}
	for _, s := range w.n.fleet {
		sum = sum.Add(s.holds)
		if s.inFlight > s.rev.slots || s.inFlight < 0 {
			return fmt.Errorf("%d in flight in a sandbox of %d slots", s.inFlight, s.rev.slots)
		}
	}
	if sum != w.n.ledger.reserved {
		return fmt.Errorf("reserved %+v, needed %+v", w.n.ledger.reserved, sum)
	}
	if lacks := w.n.ledger.reserved.Lacks(w.n.ledger.capacity); lacks != "" {
		return fmt.Errorf("over-committed in %s: %+v", lacks, w.n.ledger.reserved)
	}
	if p.making > w.n.cfg.PoolCreates || p.boxes < len(p.idle)+p.making || len(p.idle) > 0 && p.queue.len() > 0 {
		return fmt.Errorf("%d boxes, %d being made, %d idle, %d wait", p.boxes, p.making, len(p.idle), p.queue.len())
	}
	return nil
}

// Callers ask, sandboxes freeze, boxes die, creations, binds, freezes and thaws
// fail, and functions are removed, all at once and on a machine too small: the
// books balance at every moment, everybody is answered, and at the end nothing
// is left.
func TestBooksBalanceWhateverHappens(t *testing.T) {
	w := newWorld(t, pooled(2, 6), func(w *world) {
		w.cfg.FreezeAfter = time.Millisecond
		w.cfg.Capacity = api.Resources{CPU: 2000, Memory: 700 << 20, PIDs: 2048}
		w.hello = func(api.FunctionName) error {
			if rand.IntN(20) == 0 {
				return api.Errorf(api.CodeFunctionNotReady, "does not listen")
			}
			return nil
		}
	})
	var fns []function
	for i, mib := range []uint64{20, 60, 100, 200, 400} {
		fns = append(fns, w.known(fmt.Sprintf("f%d", i), func(d *sealed.Descriptor) {
			d.Config.Resources.MemoryBytes, d.Config.MaxInFlight, d.Config.Resources.CPUMillis = mib<<20, uint64(1+i%3), 100
		}))
	}
	stop := make(chan struct{})
	var background, callers sync.WaitGroup
	background.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := w.balanced(); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	background.Go(func() {
		r := rand.New(rand.NewPCG(1, 1))
		ops := []runtimetest.Op{runtimetest.OpBlank, runtimetest.OpBind, runtimetest.OpFreeze, runtimetest.OpThaw, runtimetest.OpAdmit, runtimetest.OpCreate}
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(r.IntN(10)) * time.Millisecond):
			}
			switch r.IntN(5) {
			case 0, 1:
				w.fake.Fail(ops[r.IntN(len(ops))], errors.New("bad luck"))
			case 2:
				if all := w.fake.Sandboxes(); len(all) > 0 {
					w.fake.Kill(all[r.IntN(len(all))])
				}
			case 3:
				w.fake.RefuseBind(imageDigest, [...]string{"", "", "an odd image"}[r.IntN(3)])
			case 4: // what is idle is frozen at once
				w.n.mu.Lock()
				for _, s := range w.n.fleet {
					w.n.spawn(func() { w.n.freeze(s) })
				}
				w.n.mu.Unlock()
			}
		}
	})
	served := make([]int, 8)
	for worker := range served {
		callers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 7))
			for range 60 {
				f := fns[r.IntN(len(fns))]
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+r.IntN(300))*time.Millisecond)
				sl, err := w.n.acquire(ctx, w.rev(f), asker{})
				cancel()
				if err != nil {
					if api.CodeOf(err) == api.CodeInternal {
						t.Errorf("refused with %v", err)
					}
					continue
				}
				served[worker]++
				time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
				sl.release()
			}
		})
	}
	callers.Wait()
	close(stop)
	background.Wait()
	total := 0
	for _, n := range served {
		total += n
	}
	if total == 0 {
		t.Error("nobody was served")
	}
	t.Logf("%d of %d were served; %d binds, %d creations ahead", total, 60*len(served), w.fake.Calls(runtimetest.OpBind), w.fake.Calls(runtimetest.OpBlank))
	w.n.Drain(context.Background())
	w.stop()
	if r, _, q := w.held(); r != (api.Resources{}) || q != 0 {
		t.Errorf("left over: %+v, %d in flight", r, q)
	}
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	p := &w.n.pool
	if len(w.n.boxes) != 0 || len(w.n.fleet) != 0 || len(w.n.byRev) != 0 || p.boxes != 0 || p.making != 0 || p.ending != 0 || p.queue.len() != 0 {
		t.Errorf("left over: %d boxes, %d sandboxes, pool %+v", len(w.n.boxes), len(w.n.fleet), p)
	}
}

// The pool's accounts alone, in virtual time: whatever the order of admissions,
// creations that begin, succeed and fail, takes, deaths and those who give up,
// the reservation is exact and fits, and nobody who waits is forgotten.
func TestPoolAccountsAreExact(t *testing.T) {
	base := newWorld(t)
	rev := base.rev(base.known("f"))
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.Int64Range(1, 30).Draw(t, "capacity")
		unit := overhead(1)
		n := &Node{cfg: base.n.cfg, log: base.n.log, met: base.n.met, life: context.Background(),
			ledger: ledger{capacity: api.Resources{Memory: k * unit.Memory / 2, PIDs: k * unit.PIDs, CPU: 100_000}},
			fleet:  map[string]*sandbox{}, byRev: map[string]map[string]*sandbox{}, boxes: map[string]*box{},
			changed: make(chan struct{}), dirty: make(chan struct{}, 1), pool: pool{kick: make(chan struct{}, 1)}}
		n.cfg.PoolMin, n.cfg.PoolMax, n.cfg.PoolCreates = 1, 4, rapid.IntRange(1, 3).Draw(t, "creates")
		w := &world{n: n}
		now := time.Unix(1, 0)
		var waiting []*waiter
		var running []*sandbox
		answered := func() {
			keep := waiting[:0]
			for _, v := range waiting {
				select {
				case b := <-v.got:
					if b == nil && v.err != nil { // it fails
						n.delist(v.s)
						n.ledger.release(v.s.holds)
						continue
					}
					running = append(running, v.s)
				default:
					keep = append(keep, v)
				}
			}
			waiting = keep
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			n.mu.Lock()
			switch rapid.IntRange(0, 7).Draw(t, "step") {
			case 0, 1: // a start is admitted, and takes a box or waits
				claimed, _, lacking := n.admit(rev)
				if lacking != "" {
					break
				}
				s := n.newSandbox(rev, newSandboxID())
				if claimed == nil {
					claimed = n.pop()
				}
				switch {
				case claimed != nil:
					n.take(s, claimed, true)
					running = append(running, s)
				case n.pool.barred != "":
					running = append(running, s)
				default:
					waiting = append(waiting, n.await(s))
				}
			case 2, 3: // a creation begins
				if n.pool.target = n.poolTarget(now); n.mayMake(now) {
					n.pool.making++
					n.pool.boxes++
					n.square()
				}
			case 4: // one is done
				if n.pool.making > 0 {
					n.pool.making--
					n.worked()
					n.offer(newBox(newSandboxID(), ""))
				}
			case 5: // one failed
				if n.pool.making > 0 {
					n.pool.making--
					n.pool.boxes--
					n.square()
					n.failed("", errors.New("bad luck"))
					n.pool.retryAt = time.Time{}
				}
			case 6: // a sandbox ends
				if len(running) > 0 {
					s := running[len(running)-1]
					running = running[:len(running)-1]
					n.delist(s)
					n.ledger.release(s.holds)
				}
			case 7: // somebody gives up
				if len(waiting) > 0 {
					i := rapid.IntRange(0, len(waiting)-1).Draw(t, "who")
					v := waiting[i]
					if n.giveUp(v) {
						waiting = append(waiting[:i:i], waiting[i+1:]...)
						n.delist(v.s)
						n.ledger.release(v.s.holds)
					}
				}
			}
			answered()
			if len(waiting) != n.pool.queue.len() {
				t.Fatalf("%d wait, %d are in the queue", len(waiting), n.pool.queue.len())
			}
			n.mu.Unlock()
			if err := w.balanced(); err != nil {
				t.Fatal(err)
			}
		}
		n.mu.Lock()
		n.bar("the end")
		answered()
		n.mu.Unlock()
		if len(waiting) > 0 {
			t.Fatalf("%d were not answered", len(waiting))
		}
	})
}
