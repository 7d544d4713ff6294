package coordinator

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/placement"
)

// reconcile brings a revision to want replicas: more are spread over the nodes
// with the fewest, fewer go where the most are.
func (s *scaler) reconcile(ctx context.Context, r *route, f *scaled, n *census, want int) (refused error) {
	sum := n.sum(r.hex)
	have := sum.Ready + sum.Starting
	if have > 0 {
		f.had = r.hex
	}
	first := have == 0 && f.had != r.hex && time.Since(time.Unix(r.rec.UpdatedAt, 0)) < firstFor
	view := s.c.dep.Mesh.Snapshot()
	more := map[string]int{}
	missing := want - have
	if g := r.growth; g != nil && missing > 0 {
		missing -= g.more() // some were started since, by invocations
	}
	if missing <= 0 {
		return s.order(ctx, r, f, n, more, max(0, have-want))
	}
	req, err := s.c.requestOf(r)
	if err != nil {
		return err
	}
	for range orderRounds {
		if missing <= 0 || ctx.Err() != nil {
			break
		}
		req.Seed = s.c.seed.Add(1)
		chosen, d := placement.Spread(view, req, s.c.cfg.Weights, missing, func(i int) int {
			id := view.Nodes[i].Meta.ID
			t := n.nodes[id].of(r.hex)
			return t.Ready + t.Starting + more[id]
		})
		if len(chosen) == 0 {
			if refused == nil {
				refused = api.Errorf(api.CodeNoRoom, "no node can take it: %s", d.Summary())
			}
			break
		}
		asked, have := map[string]int{}, map[string]int{}
		for id, t := range n.nodes {
			x := t.of(r.hex)
			have[id] = x.Ready + x.Starting + more[id]
		}
		for _, i := range chosen {
			asked[view.Nodes[i].Meta.ID]++
			have[view.Nodes[i].Meta.ID]++
		}
		var mu sync.Mutex
		s.each(view, asked, func(p *peer, k int) {
			t := n.nodes[p.id].of(r.hex)
			was := t.Ready + t.Starting + more[p.id]
			reply, err := s.send(ctx, r, p, api.ReplicaOrder{Hold: was + k, Firm: f.firmAt(have, p.id), First: first, HoldMs: holdFor.Milliseconds()})
			mu.Lock()
			defer mu.Unlock()
			got := max(0, reply.Held-was)
			if err == nil && reply.Refused != "" {
				err = api.Errorf(reply.Refused, "node %s: %s", p.id, reply.Reason)
			}
			if err != nil {
				refused = err
				req.Exclude = append(req.Exclude, p.id)
			}
			if got > 0 {
				more[p.id] += got
				missing -= got
				f.holds[holder{p.id, r.hex}] = holding{was + got, f.firmAt(have, p.id), time.Now()}
				if r.growth != nil {
					r.growth.begun(got)
				}
			}
		})
	}
	if rerr := s.order(ctx, r, f, n, more, 0); refused == nil {
		refused = rerr
	}
	if missing <= 0 {
		return nil
	}
	return refused
}

// each runs f for nodes at once.
func (s *scaler) each(view *api.ClusterView, asked map[string]int, f func(*peer, int)) {
	var wg sync.WaitGroup
	for _, v := range view.Nodes {
		if k, ok := asked[v.Meta.ID]; ok {
			p := s.c.peers.get(v)
			wg.Add(1)
			go func() { defer wg.Done(); f(p, k) }()
		}
	}
	wg.Wait()
}

// order has every node keep what it has of a revision, but for excess replicas,
// which end. What is known to be held for a while yet is not ordered again; nor is
// what was begun in this round, more.
func (s *scaler) order(ctx context.Context, r *route, f *scaled, n *census, more map[string]int, excess int) (failed error) {
	have := map[string]int{}
	for id, t := range n.nodes {
		if x := t.of(r.hex); x.Ready+x.Starting > 0 {
			have[id] = x.Ready + x.Starting
		}
	}
	stop := map[string]int{}
	for ; excess > 0; excess-- {
		at := "" // most replicas, then fewest invocations, then by name
		for id, k := range have {
			if k > 0 && (at == "" || k > have[at] || k == have[at] && less3(n, r.hex, id, at)) {
				at = id
			}
		}
		if at == "" {
			break
		}
		have[at]--
		stop[at]++
	}
	asked := map[string]int{}
	now := time.Now()
	for id, k := range have {
		last := f.holds[holder{id, r.hex}]
		if stop[id] > 0 || more[id] == 0 && (last.hold != k || last.firm != f.firmAt(have, id) || now.Sub(last.at) > holdAgain) {
			asked[id] = k
		}
	}
	for h := range f.holds {
		if h.revision == r.hex && have[h.node] == 0 && more[h.node] == 0 && now.Sub(f.holds[h].at) > holdAgain {
			delete(f.holds, h)
		}
	}
	var mu sync.Mutex
	s.each(s.c.dep.Mesh.Snapshot(), asked, func(p *peer, k int) {
		_, err := s.send(ctx, r, p, api.ReplicaOrder{Hold: k, Firm: f.firmAt(have, p.id), Stop: stop[p.id], HoldMs: holdFor.Milliseconds()})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = err
			return
		}
		f.holds[holder{p.id, r.hex}] = holding{k, f.firmAt(have, p.id), now}
	})
	return failed
}

// less3 reports whether a replica should rather end on node a than on b.
func less3(n *census, revision, a, b string) bool {
	x, y := n.nodes[a].of(revision), n.nodes[b].of(revision)
	return x.InFlight < y.InFlight || x.InFlight == y.InFlight && a < b
}

// send gives one order.
func (s *scaler) send(ctx context.Context, r *route, p *peer, o api.ReplicaOrder) (reply api.ReplicaReply, err error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	body, err := json.Marshal(o)
	if err != nil {
		return reply, err
	}
	path := api.NodePathReplicas + "/" + r.target
	b, err := s.c.ask(ctx, p, http.MethodPut, path, body)
	if api.CodeOf(err) == api.CodeUnknownRevision {
		if err = s.c.tell(p, r); err == nil {
			b, err = s.c.ask(ctx, p, http.MethodPut, path, body)
		}
	}
	if err == nil {
		err = json.Unmarshal(b, &reply)
	}
	if err != nil && ctx.Err() == nil {
		s.c.log.Warn("a node did not take an order for replicas", "function", r.name, "node", p.id, "err", err)
	}
	return reply, err
}

// requestOf is what a replica of r needs of a node.
func (c *Coordinator) requestOf(r *route) (placement.Request, error) {
	if len(r.rec.Bounds) == 0 {
		return r.request, nil
	}
	d, err := c.defaults(r)
	if err != nil {
		return placement.Request{}, err
	}
	return d.request, nil
}
