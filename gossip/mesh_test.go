package gossip

import (
	"context"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubble runs f with time that passes only while all sleep, and then gives
// memberlist's goroutines the time to end what they are at.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(time.Minute)
		f(t)
	})
}

func testKey(b byte) Key {
	var k Key
	for i := range k {
		k[i] = b
	}
	return k
}

func simConfig(net *simNet, id string, roles ...string) Config {
	c := DefaultLAN()
	if len(roles) == 0 {
		roles = []string{api.RoleNode}
	}
	c.Meta = api.NodeMeta{ID: id, Addr: id + ":8443", Roles: roles, Arch: "amd64", Tier: "node-key",
		Capacity: api.Resources{CPU: 8000, Memory: 16 << 30, PIDs: 10000}}
	c.Label, c.Keys, c.Epoch = "test", []Key{testKey(1)}, 1
	c.Transport = net.transport()
	return c
}

func join(t *testing.T, c Config) *Mesh {
	t.Helper()
	m, err := Join(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func shut(t *testing.T, meshes ...*Mesh) {
	t.Helper()
	for _, m := range meshes {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// eventually polls in the bubble's time, which costs nothing while all sleep.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begin)
}

func all(meshes []*Mesh, ok func(*Mesh) bool) func() bool {
	return func() bool {
		for _, m := range meshes {
			if !ok(m) {
				return false
			}
		}
		return true
	}
}

func node(v *api.ClusterView, id string) (api.NodeView, bool) {
	for _, n := range v.Nodes {
		if n.Meta.ID == id {
			return n, true
		}
	}
	return api.NodeView{}, false
}

func sees(id string, seq uint64) func(*Mesh) bool {
	return func(m *Mesh) bool {
		n, ok := node(m.Snapshot(), id)
		return ok && n.Load.Seq >= seq
	}
}

func lacksMember(id string) func(*Mesh) bool {
	return func(m *Mesh) bool {
		_, ok := node(m.Snapshot(), id)
		return !ok
	}
}

func setLoad(t *testing.T, m *Mesh, l api.NodeLoad) api.NodeLoad {
	t.Helper()
	l, err := m.SetLoad(l)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The mesh has DefaultLAN's timing, but state is exchanged four times as often, so
// that the few who miss a load, or have a dead member's last incarnation in when it
// comes back, need not be simulated for minutes until they learn of it.
func TestTwoHundredMembersConvergeLoseSomeAndTakeOneBack(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // much is kept, by 200 members
	bubble(t, func(t *testing.T) {
		const size = 200
		net := newSimNet()
		meshes := make([]*Mesh, size)
		configs := make([]Config, size)
		for i := range meshes {
			role := api.RoleNode
			if i < 2 {
				role = api.RoleCoordinator
			}
			configs[i] = simConfig(net, nodeName(i), role)
			configs[i].SyncInterval /= 4
			configs[i].ViewInterval = 100 * time.Millisecond
			if i > 0 {
				configs[i].Seeds = []string{meshes[0].Addr().String()}
			}
			meshes[i] = join(t, configs[i])
		}
		defer func() { shut(t, meshes...) }()
		took := eventually(t, 2*time.Minute, "everybody knows everybody", all(meshes, func(m *Mesh) bool { return len(m.Snapshot().Nodes) == size }))
		t.Logf("%d members knew each other %v after the last joined", size, took)
		const loaded = 60
		for i := range loaded {
			setLoad(t, meshes[2+i], api.NodeLoad{Free: api.Resources{CPU: int64(i)}, Running: i})
		}
		knowsLoads := func(m *Mesh) bool {
			return !slices.ContainsFunc(m.Snapshot().Nodes[2:2+loaded], func(n api.NodeView) bool { return n.Load.Seq == 0 })
		}
		took = eventually(t, time.Second, "coordinators know all loads", all(meshes[:2], knowsLoads))
		t.Logf("loads reached coordinators in %v", took)
		took = eventually(t, 5*time.Minute, "all know all loads", all(meshes, knowsLoads))
		t.Logf("loads reached everybody in %v", took)
		for _, m := range meshes {
			v := m.Snapshot()
			if !slices.IsSortedFunc(v.Nodes, func(a, b api.NodeView) int { return slices.Compare([]byte(a.Meta.ID), []byte(b.Meta.ID)) }) {
				t.Fatal("a view is not ordered by ID")
			}
		}

		if err := meshes[10].Leave(t.Context()); err != nil {
			t.Error(err)
		}
		shut(t, meshes[10])
		rest := slices.Concat(meshes[:10], meshes[11:])
		took = eventually(t, 5*time.Second, "who left is gone", all(rest, lacksMember(nodeName(10))))
		t.Logf("a leave was known in %v", took)

		shut(t, meshes[20])
		rest = slices.Concat(rest[:19], rest[20:])
		took = eventually(t, time.Minute, "who died is gone", all(rest, lacksMember(nodeName(20))))
		t.Logf("a death was known in %v", took)

		// It comes back at its address, with a later epoch and a load that begins at
		// 1 again: its old load, which exchanges may still carry, must not win.
		again := configs[20]
		again.Transport, again.Epoch = net.reopen(meshes[20].Addr()), 2
		meshes[20] = join(t, again)
		setLoad(t, meshes[20], api.NodeLoad{Free: api.Resources{CPU: 4242}})
		took = eventually(t, 10*time.Minute, "who came back is known with its new load", all(rest, func(m *Mesh) bool {
			n, ok := node(m.Snapshot(), nodeName(20))
			return ok && n.Load.Epoch == 2 && n.Load.Free.CPU == 4242
		}))
		t.Logf("a restart was known in %v", took)
		for _, m := range meshes[1:2] {
			s := m.Stats()
			if s.PacketsForged != 0 || s.PacketsReplayed != 0 || s.StreamsForged != 0 || s.LoadsMalformed != 0 {
				t.Errorf("in a healthy mesh: %+v", s)
			}
		}
	})
}

func TestHalvesOfAPartitionFindEachOtherThroughSeeds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const size = 10
		// What gossip did not bring to a member comes by exchanges with random others,
		// of which each doubles who knows: half a dozen are enough but for bad luck.
		exchanged := 12 * DefaultLAN().SyncInterval
		net := newSimNet()
		meshes := make([]*Mesh, size)
		side := map[string]bool{}
		for i := range meshes {
			c := simConfig(net, nodeName(i))
			if i > 0 {
				c.Seeds = []string{meshes[0].Addr().String()}
			}
			meshes[i] = join(t, c)
			if i < size/2 {
				side[meshes[i].Addr().String()] = true
			}
		}
		defer shut(t, meshes...)
		whole := all(meshes, func(m *Mesh) bool { return len(m.Snapshot().Nodes) == size })
		eventually(t, exchanged, "whole", whole)
		net.split(side)
		eventually(t, 2*time.Minute, "split", all(meshes, func(m *Mesh) bool { return len(m.Snapshot().Nodes) == size/2 }))
		time.Sleep(5 * time.Minute) // long after memberlist has stopped talking to the dead
		setLoad(t, meshes[1], api.NodeLoad{Running: 7})
		if got := meshes[size-1].Stats().SeedsMissing; got != 1 {
			t.Errorf("the half without the seed misses %d seeds, want 1", got)
		}
		net.split(nil)
		took := eventually(t, time.Minute, "healed", whole)
		t.Logf("healed in %v", took)
		took = eventually(t, exchanged, "loads of the other half", all(meshes, sees(nodeName(1), 1)))
		t.Logf("loads known in %v", took)
		if s := meshes[size-1].Stats(); s.Rejoins+meshes[size-2].Stats().Rejoins == 0 && s.RejoinsFailed == 0 {
			t.Errorf("nobody rejoined: %+v", s)
		}
	})
}

func TestMembersThatStartBeforeTheirSeedFindIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		first := simConfig(net, "late")
		at := first.Transport.(*simTransport).addr
		if err := first.Transport.Shutdown(); err != nil {
			t.Fatal(err)
		}
		c := simConfig(net, "early")
		c.Seeds = []string{at.String()}
		early := join(t, c)
		time.Sleep(time.Hour)
		first.Transport = net.reopen(at)
		late := join(t, first)
		defer shut(t, early, late)
		eventually(t, 31*time.Second, "together", all([]*Mesh{early, late}, func(m *Mesh) bool { return len(m.Snapshot().Nodes) == 2 }))
	})
}

func TestUrgentLoadsGoAtOnceAndSmallOnesWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		a := join(t, simConfig(net, "a"))
		c := simConfig(net, "b", api.RoleCoordinator)
		c.Seeds = []string{a.Addr().String()}
		b := join(t, c)
		defer shut(t, a, b)
		warm := map[string]int{"0123456789abcdef": 1}
		steps := []struct {
			name       string
			load       api.NodeLoad
			from, till time.Duration
		}{
			{"first load", api.NodeLoad{Free: api.Resources{CPU: 8000}}, 0, 100 * time.Millisecond},
			{"first warm slot", api.NodeLoad{Free: api.Resources{CPU: 8000}, Warm: warm}, 0, 300 * time.Millisecond},
			{"last warm slot", api.NodeLoad{Free: api.Resources{CPU: 8000}}, 0, 300 * time.Millisecond},
			{"small change", api.NodeLoad{Free: api.Resources{CPU: 7900}}, 9 * time.Second, 11 * time.Second},
			{"large change", api.NodeLoad{Free: api.Resources{CPU: 2000}}, 0, 1100 * time.Millisecond},
			{"draining", api.NodeLoad{Free: api.Resources{CPU: 2000}, Draining: true}, 0, 50 * time.Millisecond},
		}
		for _, s := range steps {
			stamped := setLoad(t, a, s.load)
			took := eventually(t, time.Minute, s.name, func() bool { return sees("a", stamped.Seq)(b) })
			if took < s.from || took > s.till {
				t.Errorf("%s took %v, want %v to %v", s.name, took, s.from, s.till)
			}
		}
	})
}

func TestManySmallChangesCostFewBroadcasts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		a := join(t, simConfig(net, "a"))
		defer shut(t, a)
		for i := range 10000 {
			setLoad(t, a, api.NodeLoad{Free: api.Resources{CPU: int64(4000 + i%50)}, InFlight: i % 7})
			time.Sleep(time.Millisecond)
		}
		if n := a.Stats().LoadsBroadcast; n < 5 || n > 11 {
			t.Errorf("10,000 changes in 10 s made %d broadcasts, want about one a second", n)
		}
	})
}

func TestLoadsAreOrderedAndNeverMakeMembers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		a := join(t, simConfig(net, "a"))
		c := simConfig(net, "b")
		c.Seeds, c.Epoch = []string{a.Addr().String()}, 5
		b := join(t, c)
		defer shut(t, a, b)
		eventually(t, 10*time.Second, "two", func() bool { return len(a.Snapshot().Nodes) == 2 })
		for _, s := range []struct {
			epoch, seq uint64
			node       string
			want       bool
		}{
			{5, 3, "b", true}, {5, 3, "b", false}, {5, 2, "b", false}, {6, 1, "b", true}, {5, 9, "b", false},
			{4, 1, "b", false}, {9, 9, "stranger", false}, {9, 9, "a", false}, {7, 1, "", false},
		} {
			if got := a.Observe(api.NodeLoad{Node: s.node, Epoch: s.epoch, Seq: s.seq}); got != s.want {
				t.Errorf("load %d/%d of %q taken: %v", s.epoch, s.seq, s.node, got)
			}
		}
		if a.Observe(api.NodeLoad{Node: "b", Epoch: 9, Warm: map[string]int{"a key that is too long": 1}}) {
			t.Error("a malformed load was taken")
		}
		time.Sleep(time.Second)
		if n := len(a.Snapshot().Nodes); n != 2 {
			t.Errorf("%d members, want 2", n)
		}
		if n, _ := node(a.Snapshot(), "b"); n.Load.Epoch != 6 || n.Load.Seq != 1 {
			t.Errorf("b has load %d/%d, want 6/1", n.Load.Epoch, n.Load.Seq)
		}
		// b's clock was set back: a knows a load of epoch 6, b lives in epoch 5.
		setLoad(t, b, api.NodeLoad{Running: 3})
		eventually(t, 2*time.Minute, "b's own load wins in the end", func() bool {
			n, _ := node(a.Snapshot(), "b")
			return n.Load.Running == 3
		})
		if b.Stats().Usurped == 0 {
			t.Error("b did not notice")
		}
	})
}

func TestMetaChangesReachTheOthersAndKeepTheLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		a := join(t, simConfig(net, "a"))
		c := simConfig(net, "b")
		c.Seeds = []string{a.Addr().String()}
		b := join(t, c)
		defer shut(t, a, b)
		meta := c.Meta
		meta.Labels = map[string]string{"zone": "west"}
		if err := b.UpdateMeta(t.Context(), meta); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "label", func() bool {
			n, ok := node(a.Snapshot(), "b")
			return ok && maps.Equal(n.Meta.Labels, meta.Labels) && n.Meta.Addr == "b:8443" && n.Meta.Capacity == meta.Capacity
		})
		meta.Labels = map[string]string{"zone": string(make([]byte, 600))}
		if err := b.UpdateMeta(t.Context(), meta); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("a long label: %v", err)
		}
		meta.ID = "other"
		if err := b.UpdateMeta(t.Context(), meta); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("another ID: %v", err)
		}
	})
}

func TestWaitingForViews(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := join(t, simConfig(newSimNet(), "a"))
		v := m.Snapshot()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Wait(ctx, v.Version+10); err != context.DeadlineExceeded {
			t.Errorf("without a change: %v", err)
		}
		setLoad(t, m, api.NodeLoad{Running: 1})
		newer, err := m.Wait(t.Context(), v.Version)
		if err != nil || newer.Version <= v.Version || newer.Nodes[0].Load.Running != 1 || v.Nodes[0].Load.Running != 0 {
			t.Errorf("after a change: %+v, %v; the old view: %+v", newer, err, v)
		}
		select {
		case <-m.Changed(v.Version):
		default:
			t.Error("Changed of an old version is not closed")
		}
		ch := m.Changed(m.Snapshot().Version)
		shut(t, m, m)
		<-ch
		if _, err := m.Wait(t.Context(), m.Snapshot().Version); err != ErrClosed {
			t.Errorf("after Close: %v", err)
		}
		if err := m.Leave(t.Context()); err != ErrClosed {
			t.Errorf("Leave after Close: %v", err)
		}
		if err := m.UpdateMeta(t.Context(), m.cfg.Meta); err != ErrClosed {
			t.Errorf("UpdateMeta after Close: %v", err)
		}
	})
}

func TestConfigsThatMakeNoSenseAreRefusedByField(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"gossip.label":          func(c *Config) { c.Label = "" },
		"gossip.keys":           func(c *Config) { c.Keys = nil },
		"gossip.probe_interval": func(c *Config) { c.ProbeInterval = 0 },
		"gossip.rejoin_max":     func(c *Config) { c.RejoinMax = 0 },
		"gossip.gossip_nodes":   func(c *Config) { c.GossipNodes = 0 },
		"gossip.load_threshold": func(c *Config) { c.LoadThreshold = 2 },
		"gossip.packet_bytes":   func(c *Config) { c.PacketBytes = 100 },
		"gossip.bind":           func(c *Config) { c.Transport, c.Bind = nil, "localhost" },
		"gossip.advertise":      func(c *Config) { c.Transport, c.Bind = nil, "0.0.0.0:7946" },
		"meta.id":               func(c *Config) { c.Meta.ID = "" },
		"meta.roles":            func(c *Config) { c.Meta.Roles = nil },
		"meta.capacity":         func(c *Config) { c.Meta.Capacity.CPU = -1 },
	} {
		c := simConfig(newSimNet(), "a")
		change(&c)
		m, err := Join(t.Context(), c)
		if m != nil {
			shut(t, m)
		}
		if e, ok := err.(*api.Error); !ok || e.Code != api.CodeInvalid || e.Field != field || e.Remedy == "" {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestJoinEndsWithItsContext(t *testing.T) {
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := simConfig(newSimNet(), "a")
	c.Logger = slog.New(slog.DiscardHandler)
	if m, err := Join(ctx, c); err == nil { // both were ready: either may win
		shut(t, m)
	}
	drained(t, before)
}
