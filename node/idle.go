package node

import (
	"time"

	"github.com/faasd-sec/faasd-sec/node/keepalive"
)

// habit is how a function was called on this node. The node's mutex guards it.
type habit struct {
	active int       // invocations under way
	since  time.Time // when the last one ended; zero before the first
	past   keepalive.Histogram
}

// begin and end count an invocation.
func (h *habit) begin(now time.Time) {
	if h.active == 0 && !h.since.IsZero() {
		h.past.Observe(now.Sub(h.since))
	}
	h.active++
}

func (h *habit) end(now time.Time) {
	if h.active--; h.active == 0 {
		h.since = now
	}
}

// keepFor is how long s is kept when nobody calls it: as its owner says, or else
// as its past has shown. mu is held.
func (n *Node) keepFor(s *sandbox) time.Duration {
	if s.rev.idle > 0 {
		return s.rev.idle
	}
	keep, _ := s.rev.habit.past.Decide(n.keep)
	return keep
}

// reapIdle scales to zero: it freezes sandboxes that nobody has used for a
// while, and stops them when they are not worth their memory any more.
func (n *Node) reapIdle() {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-n.life.Done():
			return
		case now := <-tick.C:
			n.mu.Lock()
			var idle, rest []*sandbox
			for _, s := range n.fleet {
				if !s.idle() { // what is held stands frozen, but stays
					continue
				}
				switch unused := now.Sub(s.lastUsed); {
				case unused >= n.keepFor(s) && !s.held(now):
					idle = append(idle, s)
				case s.state == ready && !s.unfreezable && n.cfg.FreezeAfter > 0 && unused >= n.cfg.FreezeAfter:
					rest = append(rest, s)
				}
			}
			n.mu.Unlock()
			for _, s := range idle {
				n.spawn(func() { n.removeIfIdle(s, "idle") })
			}
			for _, s := range rest {
				n.spawn(func() { n.freeze(s) })
			}
		}
	}
}
