package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// makePatience is how long an order waits for others' sandboxes to make room.
	makePatience = 2 * time.Second
	// maxHold bounds how long an order can hold what nobody uses.
	maxHold = 10 * time.Minute
	// maxFailures bounds the revisions whose failed starts are remembered.
	maxFailures = 1024
)

// failure is what is remembered of a revision's starts that failed in a row.
type failure struct {
	times  int
	code   api.Code
	reason string
	at     time.Time
}

// noteStart counts failed starts of a revision, until one succeeds.
func (n *Node) noteStart(s *sandbox, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	rev := s.rev
	switch {
	case err == nil:
		delete(n.failures, rev.key())
		return
	case s.retiring || n.draining || n.life.Err() != nil:
		return // it was not wanted any more
	}
	if n.failures == nil {
		n.failures = map[string]failure{}
	}
	if _, known := n.failures[rev.key()]; !known && len(n.failures) >= maxFailures {
		oldest := ""
		for key, f := range n.failures {
			if oldest == "" || f.at.Before(n.failures[oldest].at) {
				oldest = key
			}
		}
		delete(n.failures, oldest)
	}
	message := err.Error()
	var e *api.Error
	if errors.As(err, &e) {
		message = e.Message
	}
	n.failures[rev.key()] = failure{n.failures[rev.key()].times + 1, api.CodeOf(err), message, time.Now()}
}

// held reports whether a coordinator has s kept, used or not. mu is held.
func (s *sandbox) held(now time.Time) bool { return now.Before(s.heldUntil) }

// spare reports whether s may be stopped for the room it takes, by an invocation
// of another function; what is held does not make room for what would be held in
// its place, or the two would take turns for ever. mu is held.
func (s *sandbox) spare(now time.Time, forHeld bool) bool {
	return s.idle() && (!s.held(now) || !s.firm && !forHeld)
}

// serveReplicas tells what there is of each revision.
func (n *Node) serveReplicas(ctx *fasthttp.RequestCtx) []api.ReplicaStatus {
	type entry struct {
		api.ReplicaStatus
		live []*sandbox
	}
	all := map[string]*entry{}
	of := func(rev *revision) *entry {
		e := all[rev.key()]
		if e == nil {
			e = &entry{ReplicaStatus: api.ReplicaStatus{Function: rev.name, Revision: rev.digest, Sequence: rev.seq, Slots: rev.slots, Served: rev.served}}
			f := n.failures[rev.key()]
			e.Failed, e.Code, e.Reason = f.times, f.code, f.reason
			all[rev.key()] = e
		}
		return e
	}
	known := n.revs.all()
	n.mu.Lock()
	for _, rev := range known {
		if n.failures[rev.key()].times > 0 {
			of(rev)
		}
	}
	for _, s := range n.fleet {
		if s.rev.asked != nil {
			continue
		}
		e := of(s.rev)
		switch {
		case s.state >= stopping:
		case s.retiring:
			e.Retiring++
		case s.state == starting:
			e.Starting++
		default:
			e.Ready++
		}
		e.InFlight += s.inFlight
		e.live = append(e.live, s)
	}
	n.mu.Unlock()
	out := make([]api.ReplicaStatus, 0, len(all))
	for _, e := range all {
		if ctx.QueryArgs().Has(api.NodeQueryCPU) {
			e.CPUMicros = n.cpuOf(e.live)
		}
		out = append(out, e.ReplicaStatus)
	}
	return out
}

// cpuOf sums the CPU time of sandboxes; one that ends meanwhile counts nothing.
func (n *Node) cpuOf(live []*sandbox) (micros int64) {
	c, cancel := context.WithTimeout(n.life, time.Second)
	defer cancel()
	for _, s := range live {
		if rt := n.runtimeOf(s); rt != nil {
			if u, err := rt.Usage(c); err == nil {
				micros += u.CPU.Microseconds()
			}
		}
	}
	return micros
}

// serveReplicaOrder brings the number of a revision's replicas to what is ordered.
func (n *Node) serveReplicaOrder(ctx *fasthttp.RequestCtx, name string) (*api.ReplicaReply, error) {
	rev, err := n.lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	body, err := readSmall(ctx)
	if err != nil {
		return nil, err
	}
	var o api.ReplicaOrder
	if err := json.Unmarshal(body, &o); err != nil {
		return nil, api.Invalid("body", "send an order as JSON", err.Error())
	}
	if o.Hold < 0 || o.Firm < 0 || o.Stop < 0 || o.HoldMs < 0 {
		return nil, api.Invalid("order", "use numbers of 0 or more", "one is negative")
	}
	until := time.Now().Add(min(time.Duration(o.HoldMs)*time.Millisecond, maxHold))
	have := n.hold(rev, o, until)
	c, cancel := context.WithTimeout(n.life, makePatience)
	defer cancel()
	reply := &api.ReplicaReply{}
	for ; have < o.Hold; have++ {
		if err := n.makeReplica(c, rev, until, have < o.Firm, have == 0 && o.First); err != nil {
			e := api.ProblemOf(err, "")
			reply.Refused, reply.Reason = e.Code, e.Detail
			break
		}
	}
	reply.Held = have
	n.touch()
	return reply, nil
}

// hold keeps up to o.Hold of the replicas that are there, the most useful ones,
// lets go of the others, and stops those it is to. It returns how many it keeps.
func (n *Node) hold(rev *revision, o api.ReplicaOrder, until time.Time) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	var live []*sandbox
	for _, s := range n.byRev[rev.key()] {
		if s.state < stopping && !s.retiring {
			live = append(live, s)
		}
	}
	slices.SortFunc(live, func(a, b *sandbox) int {
		return cmp.Or(cmp.Compare(b.inFlight, a.inFlight), cmp.Compare(b.state.eager(), a.state.eager()),
			b.lastUsed.Compare(a.lastUsed), cmp.Compare(a.id, b.id))
	})
	kept := live[:min(o.Hold, len(live))]
	for i, s := range kept {
		s.heldUntil, s.firm = until, i < o.Firm
	}
	rest := live[len(kept):]
	for _, s := range rest {
		s.heldUntil = time.Time{}
	}
	for _, s := range rest[max(0, len(rest)-o.Stop):] {
		s.retiring = true
		n.spawn(func() { n.retire(s) })
	}
	return len(kept)
}

// makeReplica begins to start a sandbox for rev, under the same admission as one
// that an invocation asks for.
func (n *Node) makeReplica(ctx context.Context, rev *revision, until time.Time, firm, first bool) error {
	for {
		n.mu.Lock()
		if n.draining {
			n.mu.Unlock()
			return api.Errorf(api.CodeDraining, "the node is draining")
		}
		if s, lacking := n.begin(rev, asker{}); s == nil {
			victims, ok := n.makeRoom(rev, !firm && !first)
			wait := n.changed
			n.mu.Unlock()
			if !ok {
				return api.Errorf(api.CodeNoRoom, "not enough %s", lacking)
			}
			for _, v := range victims {
				n.spawn(func() { n.removeIfIdle(v, "stopped to make room") })
			}
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return api.Errorf(api.CodeNoRoom, "no room came free in time")
			}
		} else {
			s.heldUntil, s.firm = until, firm
			n.mu.Unlock()
			return nil
		}
	}
}
