package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sort"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func itoa(i int) string { return strconv.Itoa(i) }

// slotPatience is how long an invocation waits for a slot before it is refused.
const slotPatience = 10 * time.Millisecond

// slot is the right to one invocation in one sandbox.
type slot struct {
	s    *sandbox
	cold bool
	n    *Node
}

// release ends the invocation.
func (sl slot) release() {
	n := sl.n
	n.mu.Lock()
	sl.s.inFlight--
	sl.s.lastUsed = time.Now()
	last := sl.s.inFlight == 0
	if last || sl.s.inFlight == sl.s.rev.slots-1 {
		n.wake()
	}
	n.mu.Unlock()
	if last {
		n.touch()
	}
}

// acquire finds a slot for rev: in a ready sandbox, in one that is starting,
// or in a new one that it reserves for, stopping idle sandboxes of others if
// that makes the room. It refuses rather than over-commits. The check and the
// reservation are one step under the node's mutex.
func (n *Node) acquire(ctx context.Context, rev *revision) (slot, error) {
	cold := false
	var patience <-chan time.Time
	for {
		n.mu.Lock()
		if n.draining {
			n.mu.Unlock()
			return slot{}, api.Errorf(api.CodeDraining, "the node is draining")
		}
		s := n.pick(rev)
		if s == nil {
			var lacking string
			if lacking = n.reserve(rev); lacking == "" {
				s = n.newSandbox(rev, newSandboxID())
				n.spawn(func() { n.start(s) })
			} else if victims := n.victims(rev); victims != nil {
				wait := n.changed
				n.mu.Unlock()
				for _, v := range victims {
					n.spawn(func() { n.removeIfIdle(v, "stopped to make room") })
				}
				select {
				case <-wait:
					continue
				case <-ctx.Done():
					return slot{}, api.Errorf(api.CodeNoRoom, "no room came free in time")
				}
			} else {
				busy, wait := len(n.byRev[rev.key()]) > 0, n.changed
				n.mu.Unlock()
				if busy {
					// A caller has its reply a moment before the slot that served
					// it is free, and the next one may be here already.
					if patience == nil {
						t := time.NewTimer(slotPatience)
						defer t.Stop()
						patience = t.C
					}
					select {
					case <-wait:
						continue
					case <-patience:
					case <-ctx.Done():
					}
					return slot{}, api.Errorf(api.CodeBusy, "all of the function's slots are taken, and there is not enough %s for another sandbox", lacking)
				}
				return slot{}, api.Errorf(api.CodeNoRoom, "not enough %s", lacking)
			}
		}
		s.inFlight++
		s.lastUsed = time.Now()
		first := s.inFlight == 1
		warm := s.state == ready
		n.mu.Unlock()
		sl := slot{s: s, n: n, cold: cold || !warm}
		if warm {
			if first {
				n.touch()
			}
			return sl, nil
		}
		cold = true
		select {
		case <-s.settled:
		case <-ctx.Done():
			sl.release()
			return slot{}, api.Errorf(api.CodeDeadline, "the function did not start in time")
		}
		if s.failure != nil {
			sl.release()
			return slot{}, s.failure
		}
		return sl, nil
	}
}

// pick chooses a sandbox of rev with a free slot: ready before starting, and
// the fuller one first, so that the others may become idle. mu is held.
func (n *Node) pick(rev *revision) *sandbox {
	var best *sandbox
	for _, s := range n.byRev[rev.key()] {
		if s.state > ready || s.retiring || s.inFlight >= rev.slots {
			continue
		}
		if best == nil || (s.state == ready) != (best.state == ready) && s.state == ready ||
			s.state == best.state && s.inFlight > best.inFlight {
			best = s
		}
	}
	return best
}

// reserve takes what a new sandbox needs, both from the ledger and, for memory,
// from what the machine really has left. mu is held.
func (n *Node) reserve(rev *revision) (lacking string) {
	r := need(rev.limits)
	if l := n.load.Load(); l != nil && l.memAvailable > 0 && r.Memory > l.memAvailable-l.pending {
		return "memory on this machine"
	}
	if lacking = n.ledger.reserve(r); lacking == "" {
		if l := n.load.Load(); l != nil {
			c := *l
			c.pending += r.Memory
			n.load.Store(&c)
		}
	}
	return lacking
}

// victims are idle sandboxes of other revisions, least recently used first,
// whose end makes room for rev; nil if there are not enough, and none where
// those that are ending already will do. mu is held.
func (n *Node) victims(rev *revision) []*sandbox {
	idle, ending := []*sandbox{}, false
	free := n.ledger.free()
	for _, s := range n.fleet {
		switch {
		case s.state == ready && s.inFlight == 0 && s.rev.key() != rev.key():
			idle = append(idle, s)
		case s.state == stopping:
			free, ending = free.Add(need(s.rev.limits)), true
		}
	}
	if ending && need(rev.limits).Lacks(free) == "" {
		return idle[:0]
	}
	sort.Slice(idle, func(i, j int) bool { return idle[i].lastUsed.Before(idle[j].lastUsed) })
	for i, s := range idle {
		free = free.Add(need(s.rev.limits))
		if need(rev.limits).Lacks(free) == "" {
			return idle[:i+1]
		}
	}
	return nil
}

// ticket is a slot promised for a moment.
type ticket struct {
	slot  slot
	timer *time.Timer
}

// ticketLife is how long an unclaimed ticket holds its slot.
const ticketLife = 10 * time.Second

// promise turns a slot into a ticket that releases itself if nobody claims it.
func (n *Node) promise(sl slot) api.Ticket {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	id := hex.EncodeToString(b[:])
	t := &ticket{slot: sl}
	n.mu.Lock()
	n.tickets[id] = t
	t.timer = time.AfterFunc(ticketLife, func() {
		if t := n.takeTicket(id); t != nil {
			t.slot.release()
		}
	})
	n.mu.Unlock()
	return api.Ticket{Ticket: id, Expires: time.Now().Add(ticketLife).UnixMilli()}
}

func (n *Node) takeTicket(id string) *ticket {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.tickets[id]
	delete(n.tickets, id)
	return t
}

// claim redeems a ticket for rev.
func (n *Node) claim(id string, rev *revision) (slot, error) {
	t := n.takeTicket(id)
	if t == nil {
		return slot{}, api.Errorf(api.CodeBusy, "the ticket has expired")
	}
	t.timer.Stop()
	if t.slot.s.rev.key() != rev.key() {
		t.slot.release()
		return slot{}, api.Errorf(api.CodeInvalid, "the ticket is for another revision")
	}
	return t.slot, nil
}
