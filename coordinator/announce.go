package coordinator

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// announcements is how many nodes are told of a new revision before anybody has
// called it: those that placement would choose first.
const announcements = 3

// announce tells a few nodes of a revision that was just stored, and has them
// pull its image, so that the first invocation waits for neither. It is a
// courtesy: a node that was not told is told with the first invocation.
func (c *Coordinator) announce(f *store.Function) {
	r, err := c.routeOf(f.Name) // or of what replaced it since
	if err != nil {
		return // the next invocation says why
	}
	if f.Next != nil {
		if r = r.beside(f.Next.Revision); r == nil {
			return
		}
	}
	view := c.dep.Mesh.Snapshot()
	req := r.request
	if len(r.rec.Bounds) > 0 {
		if d, err := c.defaults(r); err == nil {
			req = d.request
		}
	}
	req.Seed = c.seed.Add(1)
	told := 0
	for _, cand := range c.indexOf(view).Pick(req, c.cfg.Weights).Candidates {
		if told++; told > announcements {
			return
		}
		p := c.peers.get(view.Nodes[cand.Index])
		if err := c.tellWith(p, r, api.NodeQueryPrefetch+"=1"); err != nil {
			c.log.Info("a node could not be told of a revision ahead", "function", r.name, "node", p.id, "err", err)
		}
	}
}

// tell gives a node a revision it does not know yet.
func (c *Coordinator) tell(p *peer, r *route) error { return c.tellWith(p, r, "") }

func (c *Coordinator) tellWith(p *peer, r *route, query string) error {
	rev := api.Revision{Descriptor: r.rec.Descriptor, ImageRef: r.rec.ImageRef, BundleRef: r.rec.BundleRef, Scale: r.rec.Scale}
	if r.rec.Plain != nil {
		rev.Plain = &api.PlainRevision{Name: r.name, Sequence: r.rec.Sequence, Image: r.rec.ImageDigest, Function: *r.rec.Plain}
		if len(r.rec.Plain.Secrets) > 0 {
			signing, err := c.brokerSigning()
			if err != nil {
				return err
			}
			rev.Plain.Broker = signing
		}
	}
	b, err := json.Marshal(rev)
	if err != nil {
		return fmt.Errorf("encode revision: %w", err)
	}
	whole := r.whole
	if now, err := c.routeOf(r.name); err == nil {
		whole = now.whole // r may have waited
	}
	if keep := keepQuery(whole).Encode(); query == "" {
		query = keep
	} else {
		query += "&" + keep
	}
	_, err = c.ask(c.life, p, http.MethodPut, api.NodePathRevisions+r.hex+"?"+query, b)
	return err
}
