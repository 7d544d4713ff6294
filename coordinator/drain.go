package coordinator

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
)

// DrainNode has a node take nothing new and stop what it has as that becomes idle;
// with on false it has it take work again. Both are idempotent.
func (c *Coordinator) DrainNode(ctx context.Context, id string, on bool) error {
	method := http.MethodPut
	if !on {
		method = http.MethodDelete
	}
	for _, v := range c.dep.Mesh.Snapshot().Nodes {
		if v.Meta.ID == id && slices.Contains(v.Meta.Roles, api.RoleNode) {
			_, err := c.ask(ctx, c.peers.get(v), method, api.NodePathDrain, nil)
			return err
		}
	}
	return &api.Error{Code: api.CodeNotFound, Field: "node", Message: fmt.Sprintf("no node %q is a member of the cluster", id),
		Remedy: "faasd-sec nodes lists them"}
}
