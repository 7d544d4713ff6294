package gossip

import (
	"fmt"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// BenchmarkMesh starts meshes of several sizes with the timing of DefaultLAN in
// one process and real time, and reports, once per size:
//
//	join-s      from the last Join until members know 99% of each other
//	load-coord-s  from all members setting a load until the coordinator has 99%
//	load-all-s    until members have 99% of each other's
//	idle-B/s, busy-B/s  sealed bytes each member sends a second, UDP payloads and
//	            streams, once the news of joining has died down, and while every
//	            load changes by a half each second
//
// Each phase ends after a minute at the latest and then reports -1, and a size
// whose members are not all started within that time is skipped. The
// processors are shared by all members: a thousand of them exchange some million
// messages about each other, which on few cores takes longer than the protocol
// would, so that the times of the largest mesh are bounds from above.
func BenchmarkMesh(b *testing.B) {
	for _, size := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("members=%d", size), func(b *testing.B) {
			for range b.N { // N is 1: a run takes longer than any -benchtime in use
				benchMesh(b, size)
			}
		})
	}
}

func benchMesh(b *testing.B, size int) {
	const window = 5 * time.Second
	sim := newSimNet()
	meshes := make([]*Mesh, 0, size)
	defer func() {
		for _, m := range meshes {
			_ = m.Close()
		}
	}()
	begin := time.Now()
	for i := range size {
		if time.Since(begin) > time.Minute {
			b.Skipf("started %d of %d members in a minute: too few processors for this size", i, size)
		}
		role := api.RoleNode
		if i == 0 {
			role = api.RoleCoordinator
		}
		c := simConfig(sim, nodeName(i), role)
		c.ViewInterval = 100 * time.Millisecond // else a thousand copies of views are what is measured
		if i > 0 {
			c.Seeds = []string{meshes[0].Addr().String()}
		}
		m, err := Join(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		meshes = append(meshes, m)
	}
	until := func(share func() float64) float64 {
		begin := time.Now()
		for share() < 0.99 {
			if time.Since(begin) > time.Minute {
				return -1
			}
			time.Sleep(20 * time.Millisecond)
		}
		return time.Since(begin).Seconds()
	}
	rate := func(d time.Duration, busy func()) float64 {
		before := sim.packetBytes.Load() + sim.streamBytes.Load()
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
			busy()
		}
		return float64(sim.packetBytes.Load()+sim.streamBytes.Load()-before) / d.Seconds() / float64(size)
	}
	b.ReportMetric(until(func() float64 {
		all := 0
		for _, m := range meshes {
			all += m.table.size()
		}
		return float64(all) / float64(size*size)
	}), "join-s")
	idle := rate(window, func() {})
	for range 9 { // until it no longer falls
		last := idle
		if idle = rate(window, func() {}); idle > 0.9*last {
			break
		}
	}
	b.ReportMetric(idle, "idle-B/s")
	n := 0
	set := func() {
		n++
		for _, m := range meshes[1:] {
			l := api.NodeLoad{Running: 10 + 10*(n%2), Warm: map[string]int{}}
			for k := range 5 {
				l.Warm[fmt.Sprintf("%016x", k)] = 1
			}
			if _, err := m.SetLoad(l); err != nil {
				b.Fatal(err)
			}
		}
	}
	set()
	b.ReportMetric(until(func() float64 { return float64(known(meshes[0])) / float64(size-1) }), "load-coord-s")
	b.ReportMetric(until(func() float64 {
		all := 0
		for _, m := range meshes {
			all += known(m)
		}
		return float64(all) / float64(size*(size-1))
	}), "load-all-s")
	b.ReportMetric(rate(window, set), "busy-B/s")
	b.ReportMetric(0, "ns/op")
}

// known counts the loads a member has.
func known(m *Mesh) (n int) {
	m.table.mu.Lock()
	defer m.table.mu.Unlock()
	for _, e := range m.table.ordered {
		if e.known {
			n++
		}
	}
	return n
}

// BenchmarkSetLoad is what a node pays for each change.
func BenchmarkSetLoad(b *testing.B) {
	m, err := Join(b.Context(), simConfig(newSimNet(), "a"))
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	warm := map[string]int{}
	for k := range 20 {
		warm[fmt.Sprintf("%016x", k)] = 1
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := m.SetLoad(api.NodeLoad{Running: i % 3, Warm: warm}); err != nil {
			b.Fatal(err)
		}
	}
}
