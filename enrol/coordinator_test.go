package enrol

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
)

// membership remembers whom it took in.
type membership map[string]string

func (m membership) AddMember(_ context.Context, name, addr string) (map[string]string, error) {
	m[name] = addr
	return m, nil
}

func coordinatorToken(t *testing.T, d *Desk) string {
	t.Helper()
	text, err := d.NewToken(t.Context(), pki.RoleCoordinator, 1, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestACoordinatorThatJoinsHoldsTheAuthority(t *testing.T) {
	d, _, addr, _ := desk(t)
	d.Members = membership{"coordinator-1": "10.0.0.1:7445"}
	dir := filepath.Join(t.TempDir(), "second")
	if err := JoinAsCoordinator(t.Context(), addr, coordinatorToken(t, d), "coordinator-2", "10.0.0.2:7445", dir); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.Load(filepath.Join(dir, CADir))
	if err != nil || ca.Hash() != d.Authority.Hash() {
		t.Fatalf("its authority: %v", err)
	}
	var cl Cluster
	var m Members
	var p Peers
	for name, v := range map[string]any{ClusterFile: &cl, MembersFile: &m, PeersFile: &p} {
		if err := Load(dir, name, "", v); err != nil {
			t.Fatal(err)
		}
	}
	if cl.ID != d.Cluster.ID || cl.GossipKeys[0] != d.Cluster.GossipKeys[0] || m.Initial["coordinator-2"] != "10.0.0.2:7445" ||
		len(m.Initial) != 2 || p.Gossip[0] != "10.0.0.1:7945" {
		t.Fatalf("told %+v %+v %+v", cl, m, p)
	}
}

func TestATokenIsGoodForItsRoleAlone(t *testing.T) {
	d, _, addr, _ := desk(t)
	members := membership{}
	d.Members = members
	dir := filepath.Join(t.TempDir(), "second")
	err := JoinAsCoordinator(t.Context(), addr, token(t, d, 1), "coordinator-2", "10.0.0.2:7445", dir)
	if api.CodeOf(err) != api.CodeForbidden {
		t.Errorf("a coordinator with a node's token: %v", err)
	}
	var cl Cluster
	if err := Load(dir, ClusterFile, "", &cl); err == nil || len(members) != 0 {
		t.Errorf("it was let in: %+v %v", cl, members)
	}
	if _, err := Join(t.Context(), addr, coordinatorToken(t, d), "node-1", t.TempDir()); api.CodeOf(err) != api.CodeForbidden {
		t.Errorf("a node with a coordinator's token: %v", err)
	}
	d.Members = nil
	err = JoinAsCoordinator(t.Context(), addr, coordinatorToken(t, d), "coordinator-2", "10.0.0.2:7445", dir)
	if api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("where the store takes no members: %v", err)
	}
	if _, err := d.NewToken(t.Context(), pki.RoleKeyBroker, 1, time.Minute); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a token for a broker: %v", err)
	}
}
