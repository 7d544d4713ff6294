package gossip

import (
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// slowTo is a transport on which dialing one address takes until its time is up, as
// to a machine without power.
type slowTo struct {
	*simTransport
	to string
}

func (s slowTo) DialTimeout(to string, limit time.Duration) (net.Conn, error) {
	if to == s.to {
		time.Sleep(limit)
		return nil, errors.New("nobody answers")
	}
	return s.simTransport.DialTimeout(to, limit)
}

func TestJoiningDoesNotWaitForSeedsThatAreGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		network := newSimNet()
		there := join(t, simConfig(network, "there", api.RoleCoordinator))
		const gone = "10.9.9.9:7946"
		quick := 0
		for i := range 16 { // seeds come in random order
			c := simConfig(network, nodeName(i))
			c.Seeds = []string{there.Addr().String(), gone}
			c.Transport = slowTo{c.Transport.(*simTransport), gone}
			began := time.Now()
			m := join(t, c)
			defer shut(t, m)
			took := time.Since(began)
			if len(m.Snapshot().Nodes) < 2 || took > c.StreamTimeout+time.Second {
				t.Errorf("%d members after %v", len(m.Snapshot().Nodes), took)
			}
			if took < time.Second {
				quick++
			}
		}
		if quick == 0 {
			t.Error("each waited for the one that is gone")
		}
		shut(t, there)
	})
}

func TestAMemberFindsTheMeshByTheSeedsOfLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		network := newSimNet()
		first := join(t, simConfig(network, "first", api.RoleCoordinator))
		second := simConfig(network, "second", api.RoleCoordinator)
		second.Seeds = []string{first.Addr().String()}
		b := join(t, second)
		c := simConfig(network, "node")
		c.Seeds = []string{first.Addr().String()}
		n := join(t, c)
		defer shut(t, b, n)
		want := []string{first.Addr().String(), b.Addr().String()}
		slices.Sort(want)
		eventually(t, time.Minute, "both coordinators", func() bool { return slices.Equal(n.PeersOf(api.RoleCoordinator), want) })
		eventually(t, time.Minute, "the node", func() bool { return slices.Equal(b.PeersOf(api.RoleNode), []string{n.Addr().String()}) })
		n.SetSeeds(want)
		shut(t, first)
		network.split(map[string]bool{n.Addr().String(): true})
		eventually(t, 2*time.Minute, "the node to be alone", func() bool { return len(n.Snapshot().Nodes) == 1 })
		time.Sleep(5 * time.Minute) // long after memberlist has stopped talking to the dead
		network.split(nil)
		eventually(t, time.Minute, "together again without the first", all([]*Mesh{b, n}, func(m *Mesh) bool { return len(m.Snapshot().Nodes) == 2 }))
	})
}
