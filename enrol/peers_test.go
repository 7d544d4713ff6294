package enrol

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gossip"
)

func TestSeedsAreCoordinatorsThenWhoElseIsThere(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	const a, b, c, n = "10.0.0.1:7945", "10.0.0.2:7945", "10.0.0.3:7945", "10.0.0.9:7946"
	r := newRoll([]string{a, "coordinators.internal:7945"}, at)
	if !slices.Equal(r.names, []string{"coordinators.internal:7945"}) {
		t.Errorf("names: %v", r.names)
	}
	step := func(what string, coordinators, members, want []string) {
		t.Helper()
		if got := r.take(coordinators, members, at); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	step("only the one that it was told", nil, nil, []string{a})
	step("all", []string{a, b, c}, []string{a, b, c, n}, []string{a, b, c, n})
	at = at.Add(100 * 24 * time.Hour) // long without any change
	step("one went", []string{b, c}, []string{b, c, n}, []string{b, c, a, n})
	at = at.Add(time.Hour)
	step("and another", []string{c}, []string{c, n}, []string{c, b, a, n})
	at = at.Add(forgetAfter - time.Minute)
	step("the first is forgotten", []string{c}, []string{c, n}, []string{c, b, n})
	at = at.Add(time.Hour)
	step("and the second", []string{c}, []string{c, n}, []string{c, n})
	at = at.Add(100 * 24 * time.Hour)
	step("nobody is there", nil, nil, []string{c})
	at = at.Add(100 * 24 * time.Hour)
	step("still nobody: it is not forgotten", nil, []string{n}, []string{c, n})
	var many []string
	for i := range 2 * maxPeers {
		many = append(many, fmt.Sprintf("10.1.0.%d:7946", i))
	}
	if got := r.take([]string{a}, append(many, a), at); len(got) != maxPeers || got[0] != a {
		t.Errorf("of many: %v", got)
	}
}

// member joins a real mesh on the loopback and follows it in dir until stop.
func member(t *testing.T, key gossip.Key, id, role, dir string, told ...string) (m *gossip.Mesh, stop func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	c := gossip.DefaultLocal()
	c.Meta = api.NodeMeta{ID: id, Addr: "127.0.0.1:1", Roles: []string{role}, Arch: "amd64"}
	c.Bind, c.Label, c.Keys, c.Seeds = "127.0.0.1:0", "peers", []gossip.Key{key}, KnownPeers(dir, told, log)
	m, err := gossip.Join(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- FollowPeers(ctx, m, dir, log) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return m, stop
}

func TestANodeThatRestartsFindsTheMeshWithoutWhomItJoinedThrough(t *testing.T) {
	var key gossip.Key
	key[0] = 1
	dir := filepath.Join(t.TempDir(), "node")
	first, stopFirst := member(t, key, "c1", api.RoleCoordinator, t.TempDir())
	second, _ := member(t, key, "c2", api.RoleCoordinator, t.TempDir(), first.Addr().String())
	_, stopNode := member(t, key, "n", api.RoleNode, dir, first.Addr().String())
	deadline := time.Now().Add(30 * time.Second)
	for {
		if slices.Contains(KnownPeers(dir, nil, slog.New(slog.DiscardHandler)), second.Addr().String()) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the second coordinator was never written down")
		}
		time.Sleep(10 * time.Millisecond)
	}
	stopNode()
	stopFirst()
	again, _ := member(t, key, "n", api.RoleNode, dir, first.Addr().String())
	// The second may still hold the first for alive.
	if got := again.PeersOf(api.RoleCoordinator); !slices.Contains(got, second.Addr().String()) {
		t.Errorf("it sees %v", got)
	}
}

func TestAPeersFileThatCannotBeReadIsAsGoodAsNone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, PeersFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := KnownPeers(dir, []string{"a:1"}, slog.New(slog.DiscardHandler)); !slices.Equal(got, []string{"a:1"}) {
		t.Errorf("%v", got)
	}
}
