package gossip

import (
	"fmt"
	"math"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/hashicorp/memberlist"
)

// BenchmarkMesh reports how meshes of several sizes behave with the timing of
// DefaultLAN and three coordinators, which are the seeds:
//
//	s-converge  from the Join of one more member until everybody has it in and it
//	            has everybody
//	s-death     from a member's end without a word until nobody has it in
//	s-drain     from a member's SetLoad with Draining until 99 of 100 know; the
//	            rest may wait for an exchange of state
//	B/member/s  sealed bytes each member sends a second while nothing happens:
//	            what UDP carries in 30 s, plus its share of an exchange of all
//	            state, as measured on a sample, over the interval between them
//
// Time is virtual (testing/synctest) and the network is in memory, sealed as ever
// but without latency or loss: the figures are those of the protocol, not of the
// machine, on which a thousand members would fight for the processors. They vary
// with memberlist's choice of peers.
//
// The meshes are formed by exchanges of state alone, and the news of that are
// dropped from memberlist's queues before they are told. Otherwise every member
// tells everything it has learned while joining 16 times over, which for a
// thousand is 16 million messages and minutes of processor time in one process.
// BenchmarkColdStart leaves them in.
func BenchmarkMesh(b *testing.B) {
	for _, size := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("members=%d", size), simulated(size, simMesh))
	}
}

// BenchmarkColdStart reports s-converge from the Joins of all members at once
// until everybody has everybody in, under the same conditions as BenchmarkMesh
// but with all the gossip that belongs to it. A thousand members, which take some
// 170 s of processor time and are therefore left out, once had 99% of each other in
// after 26 s and all after 74 s, having sent 1.8 MB each.
func BenchmarkColdStart(b *testing.B) {
	for _, size := range []int{10, 100} {
		b.Run(fmt.Sprintf("members=%d", size), simulated(size, simColdStart))
	}
}

// simulated makes a benchmark of one simulation, which takes no iterations: it
// runs when the count of them begins at 1, and its figures stand for the others.
func simulated(size int, sim func(t *testing.T, size int, report map[string]float64)) func(*testing.B) {
	var figures map[string]float64
	return func(b *testing.B) {
		if b.N == 1 {
			figures = make(map[string]float64)
			// Bubbles are for tests only, so the simulation is run as one. -count and
			// -cpu apply to that test again, but are the benchmark's matter.
			ran, passed := false, false
			testing.RunTests(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: b.Name(), F: func(t *testing.T) {
				if ran {
					return
				}
				ran = true
				bubble(t, func(t *testing.T) { sim(t, size, figures) })
				passed = !t.Failed()
			}}})
			if !passed {
				b.Fatal("the simulation failed")
			}
		}
		for unit, v := range figures {
			b.ReportMetric(v, unit)
		}
		b.ReportMetric(0, "ns/op") // of real time, which says nothing here
	}
}

const simSeeds = 3

// simConfigs are the configurations of size members, the first being coordinators
// and the seeds of all.
func simConfigs(net *simNet, size int) []Config {
	configs := make([]Config, size)
	var seeds []string
	for i := range configs {
		role := api.RoleNode
		if i < simSeeds {
			role = api.RoleCoordinator
		}
		configs[i] = simConfig(net, nodeName(i), role)
		configs[i].Seeds = seeds // of a seed, those before it
		if i < simSeeds {
			seeds = append(seeds[:len(seeds):len(seeds)], configs[i].Transport.(*simTransport).addr.String())
		} else {
			configs[i].ViewInterval = time.Hour // nobody looks at a node's snapshots here
		}
	}
	return configs
}

// simLoad is a load of usual size.
func simLoad() api.NodeLoad {
	l := api.NodeLoad{Running: 10, Warm: map[string]int{}, Free: api.Resources{CPU: 4000, Memory: 8 << 30, PIDs: 5000}}
	for k := range 5 {
		l.Warm[fmt.Sprintf("%016x", k)] = 1
	}
	return l
}

// form makes a mesh in which everybody has everybody and every load in, and no
// news are under way. Hardly any time passes in it.
func form(t *testing.T, configs []Config) []*Mesh {
	t.Helper()
	const batch = 50
	meshes := make([]*Mesh, 0, len(configs))
	t.Cleanup(func() {
		shut(t, slices.DeleteFunc(meshes, func(m *Mesh) bool { return m == nil })...)
		time.Sleep(time.Minute) // see bubble
	})
	settle := func() {
		synctest.Wait()
		for _, m := range meshes {
			dropNews(t, m)
		}
	}
	for len(meshes) < len(configs) {
		from, to := len(meshes), min(len(meshes)+batch, len(configs))
		if from < simSeeds {
			to = from + 1
		}
		meshes = meshes[:to]
		var joins sync.WaitGroup
		for i := from; i < to; i++ {
			joins.Go(func() {
				m, err := Join(t.Context(), configs[i])
				if err != nil {
					panic(err) // on no goroutine of the test's
				}
				meshes[i] = m
			})
		}
		joins.Wait()
		settle()
		for _, m := range meshes[from:] {
			setLoad(t, m, simLoad()) // its seed takes it in
		}
		settle()
	}
	// Each seed has those in that chose it, and who joined early knows nothing of
	// those who came later.
	for _, seed := range []int{1, 2, 1} {
		exchange(t, meshes[seed], meshes[0])
		settle()
	}
	for from := simSeeds; from < len(meshes); from += batch {
		var exchanges sync.WaitGroup
		for seed := range simSeeds {
			exchanges.Go(func() {
				for i := from + seed; i < min(from+batch, len(meshes)); i += simSeeds {
					exchange(t, meshes[i], meshes[seed])
				}
			})
		}
		exchanges.Wait()
		settle()
	}
	for _, m := range meshes {
		if members, loads := m.table.size(), known(m); members != len(meshes) || loads != len(meshes) {
			t.Fatalf("%s has %d members and %d loads of %d", m.id, members, loads, len(meshes))
		}
	}
	return meshes
}

// exchange has a member exchange all state with another, which may not have taken
// it in yet when this returns.
func exchange(t *testing.T, a, b *Mesh) {
	t.Helper()
	if _, err := a.list.Join([]string{b.Addr().String()}); err != nil {
		t.Error(err)
	}
}

// dropNews empties the queues of what a member has yet to tell. memberlist does
// not give access to its own.
func dropNews(t *testing.T, m *Mesh) {
	t.Helper()
	f := reflect.ValueOf(m.list).Elem().FieldByName("broadcasts")
	if !f.IsValid() || f.Type() != reflect.TypeFor[*memberlist.TransmitLimitedQueue]() {
		t.Fatal("memberlist keeps its queue elsewhere now")
	}
	(*memberlist.TransmitLimitedQueue)(f.UnsafePointer()).Reset()
	m.queue.Reset()
}

func simMesh(t *testing.T, size int, report map[string]float64) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // a million of members known, hardly any garbage
	net := newSimNet()
	configs := simConfigs(net, size+1)
	meshes := form(t, configs[:size])

	const window = 30 * time.Second
	time.Sleep(window / 10)
	before := net.packetBytes.Load()
	time.Sleep(window)
	rest := float64(net.packetBytes.Load()-before) / window.Seconds()
	sample := min(size, 50)
	streams := net.streamBytes.Load()
	for i := range sample {
		exchange(t, meshes[i*size/sample], meshes[(i*size/sample+size/2)%size])
	}
	synctest.Wait()
	perExchange := float64(net.streamBytes.Load()-streams) / float64(sample)
	// memberlist's rule, see Config.SyncInterval.
	every := configs[0].SyncInterval.Seconds() * (1 + max(0, math.Ceil(math.Log2(float64(size)/32))))
	report["B/member/s"] = rest/float64(size) + perExchange/every

	one, err := Join(t.Context(), configs[size])
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	defer func() { shut(t, one) }()
	meshes = append(meshes, one)
	eventually(t, 10*time.Minute, "everybody has the new member in", all(meshes, func(m *Mesh) bool { return m.table.size() == size+1 }))
	report["s-converge"] = time.Since(begin).Seconds()

	drains := meshes[size-1]
	l := simLoad()
	l.Draining = true
	l = setLoad(t, drains, l)
	report["s-drain"] = eventually(t, 10*time.Minute, "99 of 100 know who drains", func() bool {
		n := 0
		for _, m := range meshes {
			if hasLoad(m, l) {
				n++
			}
		}
		return float64(n) >= 0.99*float64(len(meshes))
	}).Seconds()

	for _, m := range meshes {
		dropNews(t, m) // of the join, which are still many, and no longer news
	}
	meshes = meshes[:size]
	shut(t, one)
	report["s-death"] = eventually(t, 10*time.Minute, "nobody has the dead in", all(meshes, func(m *Mesh) bool { return m.table.size() == size })).Seconds()
	for _, m := range meshes {
		if s := m.Stats(); s.PacketsForged+s.PacketsReplayed+s.StreamsForged+s.LoadsMalformed+s.MembersRefused > 0 {
			t.Fatalf("in a healthy mesh: %+v", s)
		}
	}
}

func simColdStart(t *testing.T, size int, report map[string]float64) {
	configs := simConfigs(newSimNet(), size)
	meshes := make([]*Mesh, size)
	begin := time.Now()
	var joins sync.WaitGroup
	for i := range meshes {
		joins.Go(func() {
			m, err := Join(t.Context(), configs[i])
			if err != nil {
				panic(err) // on no goroutine of the test's
			}
			meshes[i] = m
		})
	}
	joins.Wait()
	defer func() { shut(t, meshes...) }()
	eventually(t, 10*time.Minute, "everybody has everybody in", all(meshes, func(m *Mesh) bool { return m.table.size() == size }))
	report["s-converge"] = time.Since(begin).Seconds()
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

// hasLoad reports whether a member has this load or a later one.
func hasLoad(m *Mesh, l api.NodeLoad) bool {
	m.table.mu.Lock()
	defer m.table.mu.Unlock()
	e := m.table.byID[l.Node]
	return e != nil && e.known && !l.Newer(e.load)
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
