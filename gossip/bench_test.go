package gossip

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// BenchmarkMesh starts meshes of several sizes with the timing of DefaultLAN in
// one process and real time, and reports, once per size:
//
//	join-s      from the last Join until every member sees every other
//	load-coord-s  from all members setting a load until the coordinator has all
//	load-all-s    until every member has 99% of them (bounded, see below)
//	idle-B/s, busy-B/s  sealed bytes each member sends a second, UDP payloads and
//	            streams, at rest and while every load changes by a half each second
//
// The processors are shared by all members, so that times of the largest mesh
// are upper bounds.
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
	for i := range size {
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
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	until := func(what string, ok func() bool) float64 {
		begin := time.Now()
		for !ok() {
			if ctx.Err() != nil {
				b.Fatalf("%d members: %s: not in time", size, what)
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
	b.ReportMetric(until("membership", func() bool {
		for _, m := range meshes {
			if m.table.size() != size {
				return false
			}
		}
		return true
	}), "join-s")
	b.ReportMetric(rate(window, func() {}), "idle-B/s")
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
	b.ReportMetric(until("loads at the coordinator", func() bool { return known(meshes[0]) == size-1 }), "load-coord-s")
	b.ReportMetric(until("loads everywhere", func() bool {
		all := 0
		for _, m := range meshes {
			all += known(m)
		}
		return float64(all) >= 0.99*float64(size)*float64(size-1)
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
