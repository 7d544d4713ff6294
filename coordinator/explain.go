package coordinator

import (
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/placement"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// explanations keep for a while where tasks were placed, or why nowhere: a ring,
// so that the oldest goes first.
type explanations struct {
	mu   sync.Mutex
	ring []*explanation // as large as it needs to be, up to maxExplanations
	next int
}

const (
	maxExplanations = 1024
	explainFor      = 15 * time.Minute
	maxExplained    = 64 // nodes of one
)

// explanation is one task's. Reasons name resources, never amounts: those are
// forgotten with the manifest.
type explanation struct {
	sender sealed.Fingerprint
	owner  string
	mu     sync.Mutex
	p      api.Placement
}

// begin makes a place in the ring for a task.
func (e *explanations) begin(t *task) *explanation {
	x := &explanation{sender: t.sender(), owner: t.r.rec.Owner, p: api.Placement{ID: t.name, Function: t.r.name}}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.ring) < maxExplanations {
		e.ring = append(e.ring, x)
		return x
	}
	e.ring[e.next] = x
	e.next = (e.next + 1) % maxExplanations
	return x
}

// find returns the latest explanation of a task that who may see.
func (e *explanations) find(id string, who sealed.Fingerprint, now time.Time) (*api.Placement, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.ring {
		x := e.ring[(e.next+len(e.ring)-1-i)%len(e.ring)]
		if x.p.ID != id || x.sender != who && x.owner != who.String() {
			continue
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		if now.Sub(time.UnixMilli(x.p.At)) > explainFor {
			break
		}
		p := x.p
		p.Nodes = append([]api.NodeConsidered{}, p.Nodes...)
		return &p, nil
	}
	// The same for what is not there and for what is another's.
	err := api.Errorf(api.CodeNotFound, "nothing is known of the placing of task %q", id)
	err.Field, err.Remedy = "id", "ask as its initiator or as the function's owner, within fifteen minutes"
	return nil, err
}

// The rest takes nil for a task that is not explained: calls without a manifest
// that find a place at once cost nothing.

// round begins another look over the nodes.
func (x *explanation) round() {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.p.At, x.p.Nodes, x.p.Omitted = time.Now().UnixMilli(), x.p.Nodes[:0], 0
	x.p.Attempts++
}

// unfit takes what placement said of the nodes that it left out. Those tried in
// this round stand there already.
func (x *explanation) unfit(d *placement.Decision) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, r := range d.Refusals {
		if r.Reason != placement.ReasonExcluded && r.Reason != placement.ReasonNotNode {
			x.add(r.ID, api.OutcomeUnfit, r.Reason.String())
		}
	}
}

// offered tells what a node said.
func (x *explanation) offered(node string, err error) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil {
		x.add(node, api.OutcomeTaken, "")
		x.p.Node, x.p.Code = node, ""
		return
	}
	x.add(node, api.OutcomeRefused, string(api.CodeOf(err)))
}

// failed tells how placing ended.
func (x *explanation) failed(err error) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.p.Code = api.CodeOf(err)
}

func (x *explanation) add(node, outcome, reason string) {
	for i := range x.p.Nodes {
		if n := &x.p.Nodes[i]; n.Node == node {
			n.Outcome, n.Reason = outcome, reason
			return
		}
	}
	if len(x.p.Nodes) >= maxExplained {
		x.p.Omitted++
		return
	}
	x.p.Nodes = append(x.p.Nodes, api.NodeConsidered{Node: node, Outcome: outcome, Reason: reason})
}

// explain serves GET /v1/tasks/ID/placement.
func (c *Coordinator) explain(ctx *fasthttp.RequestCtx, id string) (*api.Placement, error) {
	now := time.Now()
	who, err := c.concerned(ctx, func(f sealed.Fingerprint) error {
		_, err := c.explanations.find(id, f, now)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.explanations.find(id, who, now)
}
