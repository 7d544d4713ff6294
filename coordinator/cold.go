package coordinator

import (
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// warmth is whether any node had a warm slot for a function in one view.
type warmth struct {
	view *api.ClusterView
	any  bool
}

// provenIfCold checks the signature of an invocation's grant where no node is
// known to have a warm slot: a start costs the cluster a hundred times what the
// check does, and only who has the key that the grant names should cause one.
// Where a slot is warm the agent's own check is the cheaper one, since it
// remembers grants.
func (c *Coordinator) provenIfCold(r *route, head []byte) error {
	view := c.dep.Mesh.Snapshot()
	w := r.warm.Load()
	if w == nil || w.view != view {
		key := api.RevisionKey(r.hex)
		w = &warmth{view: view}
		for i := range view.Nodes {
			if view.Nodes[i].Load.Warm[key] > 0 {
				w.any = true
				break
			}
		}
		r.warm.Store(w)
	}
	if w.any {
		return nil
	}
	return gate.Coded(sealed.VerifyGrant(head))
}
