package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/pki"
)

// TestNodesOutliveTheCoordinatorTheyJoinedThrough kills the first of three coordinators
// for good. The node that joined through it is killed too, and finds the others when it
// starts; a new one joins through another and serves alone.
func TestNodesOutliveTheCoordinatorTheyJoinedThrough(t *testing.T) {
	m := newMachines(t, 1, func(m *machines) {
		m.spare = 1
		m.flags = func(hub string) []string { return []string{"-peer-listen", hub + ":7445"} }
	})
	first := filepath.Join(m.state, "coordinator")
	state := func(i int) string { return filepath.Join(m.state, fmt.Sprintf("coordinator-%d", i)) }
	for i := 1; i <= 2; i++ { // on the machines of both nodes
		token, err := enrol.RequestToken(t.Context(), first, pki.RoleCoordinator, 1, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		c := m.startCoordinator(t, i, "-id", fmt.Sprintf("coordinator-%d", i+1), "-state", state(i),
			"-peer-listen", m.net.addr(i)+":7445", "-join", m.net.addr(0)+":7443", "-join-token", token)
		t.Cleanup(func() {
			if err := c.stop(20 * time.Second); err != nil {
				t.Error(err)
			}
		})
	}
	fn := m.deploy(t, "lasting")
	m.must(t, fn, "/echo", "x")

	m.coordinator.kill()
	x := m.nodes[1]
	x.node.kill()
	m.startNode(t, x)

	second, err := client.New(client.Config{Gateway: "http://" + m.net.addr(1) + ":8080", Identity: m.id, Pins: m.pins, Transport: m.transport})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Close)
	e := &entry{client: second}
	m.client = second
	t.Logf("the node was back after %v", m.waitNodes(t, 60*time.Second, 1))
	waitFor(t, 60*time.Second, "a call through the second", func() error { return e.call(t.Context(), fn) })

	var token string
	waitFor(t, 20*time.Second, "a token of the store's new leader", func() (err error) {
		token, err = enrol.RequestToken(t.Context(), state(1), pki.RoleNode, 1, time.Minute)
		return err
	})
	m.entrance = m.net.addr(2)
	m.nodes = append(m.nodes, m.newMachine(t, 2, token))
	m.waitNodes(t, 30*time.Second, 2)
	var told enrol.Node
	if err := enrol.Load(m.nodes[2].state, enrol.NodeFile, "", &told); err != nil {
		t.Fatal(err)
	}
	if len(told.Seeds) < 2 {
		t.Errorf("it was told of %v alone", told.Seeds)
	}
	// The image is with the coordinators that are left.
	if err := x.node.stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 60*time.Second, "a call on the new node", func() error { return e.call(t.Context(), fn) })
}
