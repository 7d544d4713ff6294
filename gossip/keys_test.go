package gossip

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestKeysRotateWithoutASplit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		a := join(t, simConfig(net, "a"))
		c := simConfig(net, "b")
		c.Seeds = []string{a.Addr().String()}
		b := join(t, c)
		meshes := []*Mesh{a, b}
		defer shut(t, meshes...)
		for _, ring := range [][]Key{{testKey(1), testKey(2)}, {testKey(2), testKey(1)}, {testKey(2)}} {
			for _, m := range meshes {
				if err := m.Rotate(ring); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute) // with the rings apart
				if len(a.Snapshot().Nodes) != 2 || len(b.Snapshot().Nodes) != 2 {
					t.Fatalf("the mesh fell apart at ring %d keys", len(ring))
				}
			}
		}
		for _, m := range meshes {
			if s := m.Stats(); s.PacketsForged+s.StreamsForged > 0 {
				t.Errorf("dropped while rotating: %+v", s)
			}
		}
		if err := a.Rotate(nil); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("an empty ring: %v", err)
		}
		// Who has the old key alone stays out.
		old := simConfig(net, "old")
		old.Seeds = []string{a.Addr().String()}
		m := join(t, old)
		defer shut(t, m)
		time.Sleep(2 * time.Minute)
		if len(m.Snapshot().Nodes) != 1 || len(a.Snapshot().Nodes) != 2 {
			t.Error("a member with the old key alone got in")
		}
		if a.Stats().StreamsForged == 0 {
			t.Error("its attempts were not counted")
		}
	})
}

func TestAnotherLabelStaysOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		a := join(t, simConfig(net, "a"))
		c := simConfig(net, "b")
		c.Label, c.Seeds = "other", []string{a.Addr().String()}
		b := join(t, c)
		defer shut(t, a, b)
		time.Sleep(time.Minute)
		if len(a.Snapshot().Nodes) != 1 || len(b.Snapshot().Nodes) != 1 || a.Stats().StreamsForged == 0 {
			t.Errorf("two labels: %+v", a.Stats())
		}
	})
}

func TestGarbageAndReplayedPacketsAreDroppedAndCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		a := join(t, simConfig(net, "a"))
		target := a.Addr().String()
		var mu sync.Mutex
		var recorded [][]byte
		net.listen(func(_, to string, b []byte) {
			mu.Lock()
			defer mu.Unlock()
			if to == target && len(recorded) < 100 {
				recorded = append(recorded, slices.Clone(b))
			}
		})
		c := simConfig(net, "b")
		c.Seeds = []string{target}
		b := join(t, c)
		defer shut(t, a, b)
		time.Sleep(time.Minute)
		net.listen(nil)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		attacker := net.transport()
		before := a.Stats()
		for _, p := range recorded {
			if _, err := attacker.WriteTo(p, target); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		after := a.Stats()
		if len(recorded) == 0 || after.PacketsReplayed-before.PacketsReplayed != uint64(len(recorded)) {
			t.Errorf("%d of %d replayed packets counted", after.PacketsReplayed-before.PacketsReplayed, len(recorded))
		}
		for _, p := range recorded {
			bad := slices.Clone(p)
			bad[len(bad)/2] ^= 1
			for _, p := range [][]byte{bad, p[:len(p)/2], {}, {packetVersion}} {
				if _, err := attacker.WriteTo(p, target); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		if got := a.Stats().PacketsForged - before.PacketsForged; got != uint64(4*len(recorded)) {
			t.Errorf("%d of %d forged packets counted", got, 4*len(recorded))
		}
	})
}
