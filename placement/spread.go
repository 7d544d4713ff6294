package placement

import "github.com/faasd-sec/faasd-sec/api"

// Spread chooses nodes for n more sandboxes of what req asks for, one after the
// other, as far as there is room: always one of those that have the fewest, and
// among these the one that Pick would rank first. has tells how many are on
// view.Nodes[i] already; it is called once for each node that fits. The result
// are indices into view.Nodes, as often as sandboxes are to be made there, and
// the decision for reasons.
func Spread(view *api.ClusterView, req Request, w Weights, n int, has func(i int) int) ([]int, Decision) {
	req.Limit = len(view.Nodes)
	req.Revision, req.Needs = "", "" // a warm slot is no room for another sandbox
	d := Pick(view, req, w)
	type place struct {
		index, has int
		free       api.Resources
	}
	places := make([]place, len(d.Candidates))
	for i, c := range d.Candidates {
		places[i] = place{c.Index, has(c.Index), view.Nodes[c.Index].Load.Free}
	}
	var chosen []int
	for range n {
		best := -1
		for i := range places {
			if _, full := lacks(req.Resources, places[i].free); !full && (best < 0 || places[i].has < places[best].has) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		p := &places[best]
		p.has++
		p.free = p.free.Sub(req.Resources)
		chosen = append(chosen, p.index)
	}
	return chosen, d
}
