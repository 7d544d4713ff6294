package placement_test

import (
	"slices"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/placement"
)

func TestSpreadFillsTheEmptiestFirst(t *testing.T) {
	view := &api.ClusterView{Version: 1}
	for _, n := range []struct {
		id     string
		memory int64
	}{{"a", 1000}, {"b", 1000}, {"c", 250}} {
		r := api.Resources{CPU: 8000, Memory: n.memory, PIDs: 1000}
		view.Nodes = append(view.Nodes, api.NodeView{
			Meta: api.NodeMeta{ID: n.id, Roles: []string{api.RoleNode}, Capacity: r}, Load: api.NodeLoad{Node: n.id, Epoch: 1, Free: r}})
	}
	req := placement.Request{Revision: "r", Resources: api.Resources{CPU: 100, Memory: 100, PIDs: 10}}
	for _, c := range []struct {
		name string
		n    int
		has  []int
		want []int // how many on each
	}{
		{"one on each", 3, []int{0, 0, 0}, []int{1, 1, 1}},
		{"where none is", 2, []int{1, 0, 0}, []int{0, 1, 1}},
		{"up to a node's room", 8, []int{0, 0, 0}, []int{3, 3, 2}},
		{"not more than all have", 40, []int{0, 0, 0}, []int{10, 10, 2}},
	} {
		got := make([]int, 3)
		chosen, _ := placement.Spread(view, req, placement.DefaultWeights(), c.n, func(i int) int { return c.has[i] })
		for _, i := range chosen {
			got[i]++
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	view.Nodes[0].Load.Draining = true
	if chosen, _ := placement.Spread(view, req, placement.DefaultWeights(), 2, func(int) int { return 0 }); slices.Contains(chosen, 0) {
		t.Errorf("a draining node was chosen: %v", chosen)
	}
}

// What one sandbox has of a node's resources the next does not get, whichever it is.
func TestSpreadCountsEveryResource(t *testing.T) {
	amounts := api.Resources{CPU: 100, Memory: 100, PIDs: 10, Scratch: 5, Ingress: 5, Egress: 5, Ports: 2, Cores: 1}
	for what, scarce := range map[string]func(*api.Resources) *int64{
		"cpu": func(r *api.Resources) *int64 { return &r.CPU }, "memory": func(r *api.Resources) *int64 { return &r.Memory },
		"pids": func(r *api.Resources) *int64 { return &r.PIDs }, "scratch": func(r *api.Resources) *int64 { return &r.Scratch },
		"ingress": func(r *api.Resources) *int64 { return &r.Ingress }, "egress": func(r *api.Resources) *int64 { return &r.Egress },
		"ports": func(r *api.Resources) *int64 { return &r.Ports }, "cores": func(r *api.Resources) *int64 { return &r.Cores },
	} {
		free := api.Resources{CPU: 8000, Memory: 8000, PIDs: 8000, Scratch: 8000, Ingress: 8000, Egress: 8000, Ports: 8000, Cores: 8000}
		*scarce(&free) = 2 * *scarce(&amounts)
		view := &api.ClusterView{Version: 1, Nodes: []api.NodeView{{
			Meta: api.NodeMeta{ID: "a", Roles: []string{api.RoleNode}, Capacity: free}, Load: api.NodeLoad{Node: "a", Epoch: 1, Free: free}}}}
		chosen, _ := placement.Spread(view, placement.Request{Resources: amounts}, placement.DefaultWeights(), 5, func(int) int { return 0 })
		if len(chosen) != 2 {
			t.Errorf("%s: %d sandboxes where there is room for 2", what, len(chosen))
		}
	}
}
