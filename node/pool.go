package node

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// pool keeps boxes without a function, so that a start does not wait for the
// runtime to make one. The node's mutex guards it.
//
// Its reservation is one overhead for each box that has no owner, or for each
// start that waits for one if these are more: who waits has handed in the
// overhead of its own. So a box for somebody who waits needs no room beyond what
// was reserved when that start was admitted, and one that fails on the way holds
// its part until it is gone.
type pool struct {
	idle   []*box // ready to be taken, oldest first
	queue  fairQueue[*waiter]
	boxes  int           // without an owner: idle, being made, being removed
	making int           // of these, being made
	ending int           // of these, being removed
	held   api.Resources // reserved for boxes and queue
	target int           // how many should be idle

	demand   demand
	failures int       // creations that failed in turn
	retryAt  time.Time // no creation before
	barred   string    // why nobody should wait; empty while boxes can be made
	off      bool      // barred for good
	taken    time.Time // when the last one was taken by a start
	yielding time.Time // no more than the queue needs before: room was needed
	short    bool      // of memory: none is kept
	closed   bool

	agentless bool // the agent's binary could not be looked at

	kick chan struct{}
}

// waiter is a start that waits for a box.
type waiter struct {
	s   *sandbox
	got chan *box // one: nil where it is to do without
	err error     // with nil: it cannot
}

// overhead is what one box takes without a function.
func overhead(k int) api.Resources {
	o := runtime.AgentOverhead()
	return api.Resources{CPU: o.CPU * int64(k), Memory: o.Memory * int64(k), PIDs: o.PIDs * int64(k)}
}

func (n *Node) boxDir(id string) string { return filepath.Join(n.cfg.RunDir, id) }

// square brings the pool's reservation to what it should be. Who lets it grow
// has made sure that there is room. mu is held.
func (n *Node) square() {
	p := &n.pool
	want := overhead(max(p.boxes, p.queue.len()))
	n.ledger.release(p.held)
	n.ledger.force(want)
	p.held = want
}

// kickPool has the pool look at once whether it should make one.
func (n *Node) kickPool() {
	select {
	case n.pool.kick <- struct{}{}:
	default:
	}
}

// pop takes the oldest idle box off the pool. mu is held.
func (n *Node) pop() *box {
	p := &n.pool
	if len(p.idle) == 0 {
		return nil
	}
	b := p.idle[0]
	p.idle = slices.Delete(p.idle, 0, 1)
	p.boxes--
	n.square()
	return b
}

// take makes b the box of s. mu is held.
func (n *Node) take(s *sandbox, b *box, hit bool) {
	n.give(s, b)
	n.pool.taken = time.Now()
	s.way, s.why, s.hit = api.StartPooled, "", hit
	if !hit {
		s.why = "no sandbox was waiting: it waited for one"
	}
}

// takeBox gives s a box of the pool, waiting for the next one if none is idle.
// Where it is not to wait there is none, and a reason.
func (n *Node) takeBox(ctx context.Context, s *sandbox) (b *box, barred string, err error) {
	defer n.kickPool()
	n.mu.Lock()
	p := &n.pool
	p.demand.note(time.Now())
	if b = s.claimed; b != nil {
		s.claimed = nil
	} else {
		b = n.pop()
	}
	if b != nil {
		n.take(s, b, true)
		n.mu.Unlock()
		n.met.poolHits.Inc()
		return b, "", nil
	}
	n.met.poolMisses.Inc()
	if p.barred != "" {
		defer n.mu.Unlock()
		return nil, p.barred, nil
	}
	w := n.await(s)
	n.mu.Unlock()
	n.kickPool()
	select {
	case b = <-w.got:
	case <-ctx.Done():
		n.mu.Lock()
		n.giveUp(w) // or it has its box by now, which goes with it
		n.wake()
		n.mu.Unlock()
		return nil, "", api.Errorf(api.CodeFunctionNotReady, "no sandbox came free within %s", s.rev.start)
	}
	if b != nil {
		return b, "", nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return nil, p.barred, w.err
}

// await puts s into the queue, with the overhead of its reservation. mu is held.
func (n *Node) await(s *sandbox) *waiter {
	w := &waiter{s: s, got: make(chan *box, 1)}
	s.holds = s.holds.Sub(overhead(1))
	n.ledger.release(overhead(1))
	n.pool.queue.push(s.rev.name, w)
	n.square()
	return w
}

// giveUp takes w out of the queue, and reports whether it was still in. mu is
// held.
func (n *Node) giveUp(w *waiter) bool {
	if !n.pool.queue.remove(w.s.rev.name, w) {
		return false
	}
	n.square()
	return true
}

// offer gives a box that was made to who waits first, or keeps it. mu is held.
func (n *Node) offer(b *box) {
	p := &n.pool
	w, ok := p.queue.pop()
	if !ok {
		p.idle = append(p.idle, b)
		return
	}
	p.boxes--
	n.square()
	n.ledger.force(overhead(1)) // what square has just released
	w.s.holds = w.s.holds.Add(overhead(1))
	n.take(w.s, b, false)
	w.got <- b
}

// bar sends away all who wait, and who would. mu is held.
func (n *Node) bar(why string) {
	p := &n.pool
	p.barred = why
	for w, ok := p.queue.pop(); ok; w, ok = p.queue.pop() {
		n.square()
		if lacking := n.ledger.reserve(overhead(1)); lacking == "" {
			w.s.holds = w.s.holds.Add(overhead(1))
		} else {
			w.err = api.Errorf(api.CodeNoRoom, "not enough %s", lacking)
		}
		w.got <- nil
	}
}

// claimFor takes a box for rev off the pool at admission, where there is room with
// its part only. mu is held.
func (n *Node) claimFor(rev *revision) *box {
	p := &n.pool
	if len(p.idle) == 0 || p.queue.len() > 0 {
		return nil
	}
	if need(rev.limits).Lacks(n.ledger.free().Add(overhead(1))) != "" {
		return nil
	}
	return n.pop()
}

// unclaim gives back the box that s had claimed and does not use. Where there is
// no room for it beside s, it is removed before s goes on.
func (n *Node) unclaim(s *sandbox) {
	n.mu.Lock()
	b := s.claimed
	s.claimed = nil
	if b == nil {
		n.mu.Unlock()
		return
	}
	if n.ledger.reserve(overhead(1)) == "" {
		n.ledger.release(overhead(1))
		n.pool.boxes++
		n.square()
		n.offer(b)
		n.mu.Unlock()
		return
	}
	n.mu.Unlock()
	if !n.dropBox(b, 0) {
		n.mu.Lock()
		n.ledger.force(overhead(1)) // it may still run: it counts, beyond what there is if need be
		n.mu.Unlock()
		n.outlive(b, func() { n.ledger.release(overhead(1)) })
	}
}

// shed parts s from a box that did not become one of its function, and reports
// whether the box is gone.
func (n *Node) shed(s *sandbox, b *box) bool {
	n.mu.Lock()
	s.box = nil // what happens to the box is no more the sandbox's end
	up := s.up
	s.up = nil
	n.mu.Unlock()
	if up != nil {
		up.Close()
	}
	gone := n.dropBox(b, 0)
	if !gone {
		n.mu.Lock()
		s.box = b // so that its reservation goes with it
		n.mu.Unlock()
	}
	return gone
}

// lose drops a box that ended, or is of no use, while nobody had it.
func (n *Node) lose(b *box, err error) {
	if b.owner.Load() != nil {
		return
	}
	b.spoil(err)
	n.mu.Lock()
	defer n.mu.Unlock()
	p := &n.pool
	i := slices.Index(p.idle, b)
	if i < 0 {
		return // being made or removed: who does that sees to it
	}
	p.idle = slices.Delete(p.idle, i, i+1)
	if time.Since(b.made) < boxYoung {
		n.failed("it ended", err)
	}
	n.evict(b)
}

// evict removes a box that was just taken off the idle ones. mu is held.
func (n *Node) evict(b *box) {
	p := &n.pool
	p.ending++
	n.spawn(func() {
		gone := n.dropBox(b, 0)
		n.mu.Lock()
		p.ending--
		if gone {
			n.gone()
		} else {
			n.outlive(b, n.gone)
		}
		n.wake()
		n.mu.Unlock()
		n.touch()
		n.kickPool()
	})
}

// gone counts a box of the pool that was removed. mu is held.
func (n *Node) gone() {
	n.pool.boxes--
	n.square()
}

// closePool ends the pool. With wait it returns once no box is left; those that
// are being made see to it themselves.
func (n *Node) closePool(wait bool) {
	n.mu.Lock()
	p := &n.pool
	p.closed = true
	n.bar("the node stops")
	idle := p.idle
	p.idle = nil
	for _, b := range idle {
		n.evict(b)
	}
	n.mu.Unlock()
	for wait {
		n.mu.Lock()
		left, changed := p.ending, n.changed
		n.mu.Unlock()
		if left == 0 {
			return
		}
		<-changed // each removal has its deadline
	}
}
