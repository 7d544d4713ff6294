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
