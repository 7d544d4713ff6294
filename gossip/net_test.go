package gossip

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"go.uber.org/goleak"
)

func localConfig(id string, roles ...string) Config {
	c := DefaultLocal()
	c.Meta = api.NodeMeta{ID: id, Addr: "127.0.0.1:1", Roles: roles, Arch: "amd64", Tier: "node-key"}
	c.Bind, c.Label, c.Keys = "127.0.0.1:0", "test", []Key{testKey(1)}
	return c
}

// within waits in real time for ok, going by Wait as a caller would.
func within(t *testing.T, m *Mesh, d time.Duration, what string, ok func(*api.ClusterView) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for v := m.Snapshot(); !ok(v); {
		var err error
		if v, err = m.Wait(ctx, v.Version); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// drained waits for memberlist's goroutines, which end with the probe they are at.
func drained(t *testing.T, before goleak.Option) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second) // a probe on a busy machine, many times over
	for {
		err := goleak.Find(before)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestMeshOverRealSockets(t *testing.T) {
	before := goleak.IgnoreCurrent()
	a := join(t, localConfig("a", api.RoleCoordinator))
	c := localConfig("b", api.RoleNode)
	c.Seeds = []string{a.Addr().String()}
	b := join(t, c)
	if !a.Addr().Addr().IsLoopback() || a.Addr().Port() == 0 {
		t.Errorf("advertises %v", a.Addr())
	}
	two := func(v *api.ClusterView) bool { return len(v.Nodes) == 2 }
	within(t, a, 30*time.Second, "a sees b", two)
	if !two(b.Snapshot()) {
		t.Error("after Join the first snapshot lacks the seed")
	}
	l := setLoad(t, b, api.NodeLoad{Running: 5, Images: []string{"0123456789abcdef"}})
	within(t, a, 30*time.Second, "a sees b's load", func(v *api.ClusterView) bool {
		n, ok := node(v, "b")
		return ok && n.Load.Seq == l.Seq && n.Load.Running == 5 && n.Load.Images[0] == "0123456789abcdef"
	})
	if err := b.Leave(t.Context()); err != nil {
		t.Error(err)
	}
	within(t, a, 30*time.Second, "b left", func(v *api.ClusterView) bool { return len(v.Nodes) == 1 })
	shut(t, a, b)
	drained(t, before)
}

func TestNothingReadableOnTheWire(t *testing.T) {
	var mu sync.Mutex
	var wire bytes.Buffer
	sim := newSimNet()
	sim.listen(func(_, _ string, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		wire.Write(b)
	})
	bubble(t, func(t *testing.T) {
		a := join(t, simConfig(sim, "secret-node-name"))
		c := simConfig(sim, "other-node-name")
		c.Seeds = []string{a.Addr().String()}
		b := join(t, c)
		defer shut(t, a, b)
		setLoad(t, b, api.NodeLoad{Running: 5})
		time.Sleep(time.Minute)
	})
	for _, s := range []string{"secret-node-name", "other-node-name", "node-key", "test"} {
		if bytes.Contains(wire.Bytes(), []byte(s)) {
			t.Errorf("%q went over the wire", s)
		}
	}
	if wire.Len() == 0 {
		t.Error("nothing went over the wire")
	}
}

func TestCloseDoesNotWaitForASilentSeed(t *testing.T) {
	before := goleak.IgnoreCurrent()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := localConfig("a", api.RoleNode)
	c.StreamTimeout = time.Minute
	c.Seeds = []string{silent.Addr().String()}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if m, err := Join(ctx, c); err == nil {
		shut(t, m)
		t.Error("joined through a silent seed")
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	drained(t, before)
}

func TestAddressInUseIsAnErrorWithTheAddress(t *testing.T) {
	before := goleak.IgnoreCurrent()
	a := join(t, localConfig("a", api.RoleNode))
	c := localConfig("b", api.RoleNode)
	c.Bind = a.Addr().String()
	c.Logger = slog.New(slog.DiscardHandler)
	if _, err := Join(t.Context(), c); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	shut(t, a)
	drained(t, before)
}

func TestConcurrentUse(t *testing.T) {
	before := goleak.IgnoreCurrent()
	a := join(t, localConfig("a", api.RoleCoordinator))
	c := localConfig("b", api.RoleNode)
	c.Seeds = []string{a.Addr().String()}
	b := join(t, c)
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	loop := func(f func(i int)) {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				f(i)
			}
		})
	}
	loop(func(i int) {
		l, err := b.SetLoad(api.NodeLoad{Running: i % 50, Warm: map[string]int{"r": i % 2}})
		if err != nil {
			t.Error(err)
		}
		a.Observe(l)
	})
	loop(func(i int) { _, _ = a.Wait(ctx, a.Snapshot().Version) })
	loop(func(i int) { _, _, _ = a.Stats(), b.Stats(), b.Snapshot(); b.Load() })
	loop(func(i int) {
		meta := c.Meta
		meta.Labels = map[string]string{"i": string(rune('a' + i%26))}
		if err := b.UpdateMeta(ctx, meta); err != nil {
			t.Error(err)
		}
	})
	loop(func(i int) {
		time.Sleep(50 * time.Millisecond)
		if err := b.Rotate([]Key{testKey(1), testKey(2)}); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	wg.Go(func() { shut(t, b) })
	wg.Go(func() { shut(t, b) })
	shut(t, a)
	wg.Wait()
	drained(t, before)
}
