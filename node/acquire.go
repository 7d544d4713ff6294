package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func itoa(i int) string { return strconv.Itoa(i) }

// slotPatience is how long an invocation waits for a slot before it is refused.
const slotPatience = 10 * time.Millisecond

// slot is the right to one invocation in one sandbox.
type slot struct {
	s     *sandbox
	cold  bool
	first bool // the sandbox's only one, and nobody was told yet
	n     *Node

	until time.Time // by when the task must have ended; zero where nobody says
}

// release ends the invocation.
func (sl slot) release() {
	n := sl.n
	now := time.Now()
	n.mu.Lock()
	sl.s.inFlight--
	sl.s.lastUsed = now
	sl.s.rev.habit.end(now)
	last := sl.s.inFlight == 0
	if last || sl.s.inFlight == sl.s.rev.slots-1 {
		n.wake()
	}
	n.mu.Unlock()
	if last {
		n.touch()
	}
}

// how says how the invocation found its sandbox: with its function, waiting for
// one, or not there.
func (sl slot) how() string {
	if !sl.cold {
		return "warm"
	}
	sl.n.mu.Lock()
	defer sl.n.mu.Unlock()
	if sl.s.hit {
		return "pooled"
	}
	return "cold"
}

// enter gives one of the slots of s to an invocation, and reports whether it is
// the only one. mu is held.
func (n *Node) enter(s *sandbox) (first bool) {
	s.inFlight++
	s.lastUsed = time.Now()
	s.rev.habit.begin(s.lastUsed)
	s.rev.served++
	return s.inFlight == 1
}

// asker is who asks for a slot.
type asker struct {
	grant []byte    // that the invocation came with, for the agent of a new sandbox; nil for none
	clock []byte    // what the coordinator's showed, as HeaderTime has it; empty where it does not say
	at    time.Time // when that was read

	existing bool // no sandbox may be made for it: the function has as many as it may
}

// skew is how far this machine's clock is ahead of the coordinator's, by its word;
// what the request took on its way included. A word that is none is as far as can be.
func (a asker) skew() time.Duration {
	if len(a.clock) == 0 {
		return 0
	}
	ms, err := strconv.ParseInt(string(a.clock), 10, 64)
	if err != nil || ms < 0 || ms > 1<<50 {
		return math.MaxInt64
	}
	return a.at.Sub(time.UnixMilli(ms))
}

// acquire finds a slot for rev: in a ready sandbox, in a frozen one, in one that
// is starting, or in a new one that it reserves for, giving up boxes of the pool
// and then stopping idle sandboxes of others if that makes the room. It refuses rather than over-commits. The check and the
// reservation are one step under the node's mutex. What
// is known of who asks goes with a new sandbox, where one may be made for it.
func (n *Node) acquire(ctx context.Context, rev *revision, by asker) (slot, error) {
	if rev.full.Load() {
		return slot{}, api.Errorf(api.CodeBusy, "this node remembers too many messages of the function; try again when some have expired")
	}
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
			if by.existing {
				n.mu.Unlock()
				return slot{}, api.Errorf(api.CodeBusy, "the function has as many replicas as it may, and their slots here are taken")
			}
			var lacking string
			if s, lacking = n.begin(rev, by); s != nil {
			} else if victims, ok := n.makeRoom(rev, false); ok {
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
		first := n.enter(s)
		warm, sl := s.state == ready, slot{s: s, n: n, cold: cold || s.state == starting}
		if s.state == frozen {
			if err := n.thaw(ctx, s); err != nil { // it has given the mutex back
				n.mu.Lock()
				s.retiring = ctx.Err() == nil || s.retiring
				n.mu.Unlock()
				sl.release()
				if ctx.Err() != nil {
					return slot{}, err
				}
				n.spawn(func() { n.remove(s, err.Error()) })
				continue
			}
			warm = true
		} else {
			n.mu.Unlock()
		}
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

// begin reserves for a new sandbox of rev and has it start; nil where that is not
// possible, with what is lacking. mu is held.
func (n *Node) begin(rev *revision, by asker) (s *sandbox, lacking string) {
	claimed, ports, lacking := n.admit(rev)
	if lacking != "" {
		return nil, lacking
	}
	s = n.newSandbox(rev, newSandboxID())
	n.ports.take(s, ports)
	n.cores.take(s, int(rev.limits.Cores))
	s.claimed, s.waiting, s.skew = claimed, bytes.Clone(by.grant), by.skew()
	n.spawn(func() { n.start(s) })
	return s, ""
}

// pick chooses a sandbox of rev with a free slot: ready before frozen before
// starting, and the fuller one first, so that the others may become idle. mu is
// held.
func (n *Node) pick(rev *revision) *sandbox {
	var best *sandbox
	for _, s := range n.byRev[rev.key()] {
		if s.state > frozen || s.retiring || s.inFlight >= rev.slots {
			continue
		}
		if best == nil || s.state.eager() > best.state.eager() ||
			s.state == best.state && s.inFlight > best.inFlight {
			best = s
		}
	}
	return best
}

// eager orders states by how soon an invocation is served in them.
func (s state) eager() int {
	switch s {
	case ready:
		return 2
	case frozen:
		return 1
	}
	return 0
}

// admit reserves what a new sandbox needs. Where only the part of an idle box is
// lacking, that box is claimed for it. mu is held.
func (n *Node) admit(rev *revision) (claimed *box, ports []Port, lacking string) {
	for _, s := range n.fleet {
		if rev.neighbour(s) {
			return nil, nil, "distance: a sandbox of the function runs here, and is to be its only one"
		}
	}
	if ports, lacking = n.ports.find(rev.needs().Ports, time.Now()); lacking != "" {
		return nil, nil, lacking
	}
	if lacking = n.reserve(rev); lacking == "" {
		return nil, ports, ""
	}
	if claimed = n.claimFor(rev); claimed == nil {
		return nil, nil, lacking
	}
	if lacking = n.reserve(rev); lacking != "" { // the machine itself has not the memory
		n.pool.boxes++
		n.square()
		n.offer(claimed)
		return nil, nil, lacking
	}
	return claimed, ports, ""
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

// makeRoom gives up what stands in the way of a sandbox of rev: boxes of the
// pool, which it begins to remove, and then the idle sandboxes of other revisions
// that it returns, least recently used first, those that are held last and, where
// the new one is to be held itself, not at all. Neither where what is ending
// already will do; ok is false where all together is not enough. mu is held.
func (n *Node) makeRoom(rev *revision, forHeld bool) (victims []*sandbox, ok bool) {
	p := &n.pool
	victims, ending, ok := n.inTheWay(rev, forHeld)
	if !ok {
		return nil, false
	}
	want, free, gone := need(rev.limits), n.ledger.free(), map[*sandbox]bool{}
	short := func() bool {
		if want.Lacks(free) != "" {
			return true
		}
		_, lacking := n.ports.findWithout(rev.needs().Ports, time.Now(), gone)
		return lacking != ""
	}
	for _, s := range victims {
		free, gone[s] = free.Add(s.holds), true
	}
	now := time.Now()
	idle, ending := []*sandbox{}, ending || p.ending > 0
	free = free.Add(overhead(p.ending))
	for _, s := range n.fleet {
		switch {
		case gone[s]:
		case s.spare(now, forHeld) && s.rev.key() != rev.key():
			idle = append(idle, s)
		case s.state == stopping:
			free, ending, gone[s] = free.Add(s.holds), true, true
		}
	}
	if (ending || len(victims) > 0) && !short() {
		return victims, true
	}
	boxes := 0
	if p.queue.len() == 0 { // or each box is somebody's
		for boxes < len(p.idle) && (boxes == 0 || want.Lacks(free) != "") {
			free = free.Add(overhead(1))
			boxes++
		}
	}
	// What is held goes last.
	slices.SortFunc(idle, func(a, b *sandbox) int {
		if a.held(now) != b.held(now) {
			if b.held(now) {
				return -1
			}
			return 1
		}
		return a.lastUsed.Compare(b.lastUsed)
	})
	for i := 0; short() || boxes == 0 && len(victims) == 0; i++ {
		if i == len(idle) {
			return nil, false
		}
		free, gone[idle[i]] = free.Add(idle[i].holds), true
		victims = append(victims, idle[i])
	}
	for _, b := range p.idle[:boxes] {
		n.evict(b)
	}
	p.idle = append([]*box(nil), p.idle[boxes:]...)
	p.yielding = time.Now().Add(poolYield)
	return victims, true
}

// ticket is a slot promised for a moment.
type ticket struct {
	slot  slot
	task  *task // whose it is; nil without needs
	timer *time.Timer
}

// ticketLife is how long an unclaimed ticket holds its slot.
const ticketLife = 10 * time.Second

// promise turns a slot into a ticket that releases itself if nobody claims it. It
// keeps the task's needs, so that who brings the ticket need not.
func (n *Node) promise(sl slot, what *task) api.Ticket {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	id := hex.EncodeToString(b[:])
	t := &ticket{slot: sl, task: what}
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

// ticketTask is the task that a ticket was given for, nil for none.
func (n *Node) ticketTask(id string, rev *revision, now time.Time) (*task, error) {
	n.mu.Lock()
	t := n.tickets[id]
	n.mu.Unlock()
	if t == nil || t.task == nil || t.task.rev.digest != rev.digest || t.task.rev.seq != rev.seq {
		return nil, nil
	}
	return t.task, t.task.late(now)
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
