package placement

import (
	"fmt"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

func uniform(n int) *api.ClusterView {
	v := &api.ClusterView{}
	for i := range n {
		id := fmt.Sprintf("n%05d", i)
		capacity := api.Resources{CPU: 16000, Memory: 64 << 30, PIDs: 30000}
		v.Nodes = append(v.Nodes, api.NodeView{
			Meta: api.NodeMeta{ID: id, Roles: []string{api.RoleNode}, Arch: "amd64", Tier: "node-key", Capacity: capacity},
			Load: api.NodeLoad{Node: id, Epoch: 1, Seq: 1, Free: capacity},
		})
	}
	return v
}

// busy is a cluster in use: each node has 20 warm revisions of 200 and 64
// images of 400.
func busy(n int) *api.ClusterView {
	v := uniform(n)
	for i := range v.Nodes {
		l := &v.Nodes[i].Load
		l.Free.CPU -= int64(i%7) * 2000
		l.InFlight = i % 13
		l.Warm = map[string]int{}
		for k := range 20 {
			l.Warm[fmt.Sprintf("%016x", (i*37+k)%200)] = 1 + k%3
		}
		for k := range 64 {
			l.Images = append(l.Images, fmt.Sprintf("%016x", (i*53+k)%400))
		}
	}
	return v
}

func BenchmarkPick(b *testing.B) {
	need := api.Resources{CPU: 500, Memory: 256 << 20, PIDs: 128}
	warm := Request{Revision: fmt.Sprintf("%016x", 5), Image: fmt.Sprintf("%016x", 7), Resources: need, Arch: "amd64"}
	cold := warm
	cold.Revision = "ffffffffffffffff"
	none := cold
	none.Arch = "s390x"
	for _, n := range []int{10, 1000, 10000} {
		v := busy(n)
		x := NewIndex(v, 0)
		pending := make([]int, n)
		for _, c := range []struct {
			name string
			req  Request
		}{{"warm", warm}, {"cold", cold}, {"none", none}} {
			c.req.Pending = func(i int) int { return pending[i] }
			b.Run(fmt.Sprintf("exact/%s/nodes=%d", c.name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					c.req.Seed++
					Pick(v, c.req, DefaultWeights())
				}
			})
			b.Run(fmt.Sprintf("index/%s/nodes=%d", c.name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					c.req.Seed++
					x.Pick(c.req, DefaultWeights())
				}
			})
		}
		b.Run(fmt.Sprintf("NewIndex/nodes=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				NewIndex(v, 0)
			}
		})
	}
}
