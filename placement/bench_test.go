package placement

import (
	"fmt"
	"slices"
	"testing"
	"time"

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

// lending is a cluster in use whose nodes lend all that a task can ask for, each
// in another state.
func lending(n int) *api.ClusterView {
	v := busy(n)
	for i := range v.Nodes {
		c, f := &v.Nodes[i].Meta.Capacity, &v.Nodes[i].Load.Free
		c.Scratch, c.Ingress, c.Egress, c.Ports = 512<<30, 10e9, 10e9, 2000
		f.Scratch, f.Ingress = c.Scratch/16*int64(i%17), c.Ingress/10*int64(i%11)
		f.Egress, f.Ports = c.Egress/10*int64(i%13)*10/12, int64(i%7)*300
		v.Nodes[i].Meta.Labels = map[string]string{"zone": string(rune('a' + i%3)), "disk": "ssd"}
	}
	return v
}

// BenchmarkDecisions places tasks with needs over five resources and pids, under
// two conditions, on views of a cluster as the hot path has them: an index that
// several decisions share until the next view. It reports decisions per second
// and the 99th percentile of one.
func BenchmarkDecisions(b *testing.B) {
	for _, n := range []int{100, 10000} {
		for _, policy := range []string{PolicyPack, PolicySpread} {
			b.Run(fmt.Sprintf("%s/nodes=%d", policy, n), func(b *testing.B) {
				w, err := WeightsOf(policy)
				if err != nil {
					b.Fatal(err)
				}
				v := lending(n)
				pending := make([]int, n)
				req := Request{
					Revision: "ffffffffffffffff", Image: fmt.Sprintf("%016x", 7), Apart: true,
					Archs: []string{"amd64"}, Pending: func(i int) int { return pending[i] },
					Require: []api.Requirement{{Key: "zone", Op: api.OpDiffers, Value: "b"}, {Key: "disk", Op: api.OpExists}},
				}
				var keys []string
				for k := range 8 {
					keys = append(keys, fmt.Sprintf("%016x", 1000+k))
				}
				const perView = 50 // views follow each other every 20 ms, see gossip.DefaultLAN
				took := make([]time.Duration, 0, 1<<16)
				x := NewIndex(v, 0)
				views := []*api.ClusterView{v, {Version: 1, Nodes: slices.Clone(v.Nodes)}}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					began := time.Now()
					if i%perView == 0 {
						x = x.Next(views[i/perView%2])
					}
					req.Seed++
					k := int64(i % 8)
					req.Needs = keys[k]
					req.Resources = api.Resources{CPU: 250 * (1 + k), Memory: (64 << 20) << (k % 4), PIDs: 64,
						Scratch: k << 30, Ingress: k * 50e6, Egress: k * 25e6, Ports: k % 3}
					if d := x.Pick(req, w); len(d.Candidates) == 0 {
						b.Fatal(d.Summary())
					}
					if len(took) < cap(took) {
						took = append(took, time.Since(began))
					}
				}
				slices.Sort(took)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
				b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-us")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
