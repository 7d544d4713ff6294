package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/runtime"
)

const (
	poolEvery  = 500 * time.Millisecond // between two looks at the pool without an occasion
	poolYield  = 2 * time.Second        // none is made ahead for so long after room was needed
	boxTimeout = 30 * time.Second       // of one creation
	boxYoung   = 10 * time.Second       // one that ends before counts as one that failed
	poolPause  = 30 * time.Millisecond  // after a box was taken: the start it is for has the processors
	failPause  = 100 * time.Millisecond // after the first failure; doubled each time
	failMost   = 30 * time.Second
	failBar    = 2 // after so many failures in turn nobody waits any more

	busyCPU   = 50.0     // percent of time some task waited for a processor
	shortMem  = 10.0     // percent of time some task waited for memory
	memorySub = 64 << 20 // bytes the machine is to have left whatever is made ahead
)

// keepPool makes boxes ahead of need, and those that starts wait for.
func (n *Node) keepPool() {
	tick := time.NewTicker(poolEvery)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		pause.Reset(n.stepPool(time.Now()))
		select {
		case <-n.life.Done():
			return
		case <-n.pool.kick:
			continue
		case <-pause.C:
			continue
		case <-tick.C:
		}
		n.tendPool(time.Now())
	}
}

// stepPool begins the creations that may begin now, and says when to look again.
func (n *Node) stepPool(now time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := &n.pool
	p.target = n.poolTarget(now)
	for n.mayMake(now) {
		p.making++
		p.boxes++
		n.square()
		n.spawn(n.makeBox)
	}
	if wait := p.taken.Add(poolPause).Sub(now); wait > 0 {
		return wait
	}
	return poolEvery
}

// poolTarget is how many boxes should be idle. mu is held.
func (n *Node) poolTarget(now time.Time) int {
	if n.pool.short || n.pool.off || n.pool.closed || n.draining {
		return 0
	}
	return min(max(n.pool.demand.want(now), n.cfg.PoolMin), n.cfg.PoolMax)
}

// mayMake reports whether one more box may be made now: for who waits, always
// when there is room; ahead of need, with consideration for what runs. mu is held.
func (n *Node) mayMake(now time.Time) bool {
	p := &n.pool
	if p.off || p.closed || p.making >= n.cfg.PoolCreates || now.Before(p.retryAt) {
		return false
	}
	if p.boxes >= p.queue.len() && overhead(1).Lacks(n.ledger.free()) != "" {
		return false
	}
	if p.queue.len() > p.making {
		return true
	}
	want := p.target
	if seen := n.seen.Load(); seen != nil {
		if seen.busy && p.making > p.queue.len() {
			return false // one at a time, in what the functions leave
		}
		if seen.busy {
			want = min(want, n.cfg.PoolMin)
		}
		if seen.free.Memory > 0 && seen.free.Memory < overhead(1).Memory+memorySub {
			return false
		}
	}
	have := len(p.idle) + p.making - p.queue.len()
	if now.Sub(p.taken) < poolPause && 2*have >= want {
		return false // or starts that follow each other closely would empty it
	}
	return !now.Before(p.yielding) && have < want
}

// makeBox makes one box and gives it to who waits for it, or keeps it.
func (n *Node) makeBox() {
	began := time.Now()
	b, err := n.blank()
	took := time.Since(began)
	n.mu.Lock()
	p := &n.pool
	p.making--
	switch {
	case err != nil:
		if b == nil {
			n.gone()
		} else {
			n.outlive(b, n.gone)
		}
		n.failed("it could not be made", err)
	case p.closed:
		n.evict(b)
	default:
		p.demand.filled(took)
		n.worked()
		n.offer(b)
	}
	n.wake()
	n.mu.Unlock()
	if err == nil {
		n.met.fillSeconds.Observe(took.Seconds())
	}
	n.touch()
	n.kickPool()
}

// blank makes a box without a function, whose launcher is admitted and whose
// evidence is there. With an error it returns the box only if that could not be
// removed.
func (n *Node) blank() (b *box, err error) {
	ctx, cancel := context.WithTimeout(n.life, boxTimeout)
	defer cancel()
	id := newSandboxID()
	b = newBox(id, n.boxDir(id))
	err = n.create(b, func() (runtime.Sandbox, error) {
		return n.dep.Runtime.CreateBlank(ctx, runtime.BlankSpec{ID: id, AgentPath: n.cfg.AgentPath, SocketDir: b.dir})
	})
	if err == nil {
		err = b.greeting(ctx)
	}
	if err != nil {
		err = fmt.Errorf("make a sandbox ahead: %w", err)
		if n.dropBox(b, 0) {
			return nil, err
		}
	}
	return b, err
}

// failed and worked keep count of how creations go: they pause longer and longer
// while they fail, and one line in the log tells of a change. mu is held.
func (n *Node) failed(what string, err error) {
	p := &n.pool
	if n.life.Err() != nil || p.closed {
		return
	}
	p.failures++
	p.retryAt = time.Now().Add(min(failPause<<min(p.failures-1, 10), failMost))
	if p.failures == 1 {
		n.log.Warn("the pool lacks a sandbox: "+what, "err", err)
	}
	switch {
	case errors.Is(err, runtime.ErrUnsupported):
		p.off = true
		n.log.Warn("the pool is turned off: this machine cannot make sandboxes ahead", "err", err)
		n.bar("the pool is turned off: " + err.Error())
	case p.failures >= failBar:
		n.bar(err.Error())
	}
}

func (n *Node) worked() {
	p := &n.pool
	if p.failures > 0 {
		n.log.Info("the pool is filled again", "failures", p.failures)
	}
	p.failures = 0
	if !p.off {
		p.barred = ""
	}
}

// tendPool looks after the boxes that wait: it gives up those that are too many,
// of a replaced agent, or in the way of the machine, and renews evidence.
func (n *Node) tendPool(now time.Time) {
	agent, err := n.agent.current()
	n.mu.Lock()
	p := &n.pool
	if (err != nil) != p.agentless { // said once, not twice a second
		p.agentless = err != nil
		n.log.Warn("the agent's binary", "usable", err == nil, "err", err)
	}
	if seen := n.seen.Load(); seen != nil && seen.short != p.short {
		p.short = seen.short
		n.log.Info("the pool follows the machine's memory", "short", p.short)
	}
	p.target = n.poolTarget(now)
	// Slowly, since the next burst may be near; all at once where the machine
	// needs the memory.
	surplus := len(p.idle) - p.target
	if surplus > 0 && !p.short && !p.off {
		surplus = 1
	}
	var keep []*box
	for i, b := range p.idle {
		if i < surplus || err == nil && b.agent != agent {
			n.evict(b)
		} else {
			keep = append(keep, b)
		}
	}
	p.idle = keep
	n.mu.Unlock()
	for _, b := range keep {
		b.mu.Lock()
		stale := b.proof != nil && now.Sub(b.proof.at) >= proofRenew && !b.renewing
		if stale {
			b.renewing = true
		}
		b.mu.Unlock()
		if stale {
			n.spawn(func() { n.renew(b) })
		}
	}
}

// renew has the statement and the evidence of an idle box made anew. One that
// does not answer is given up.
func (n *Node) renew(b *box) {
	_, err := n.proven(n.life, b, proofRenew)
	b.mu.Lock()
	b.renewing = false
	b.mu.Unlock()
	if err != nil && n.life.Err() == nil {
		n.lose(b, err)
	}
}
