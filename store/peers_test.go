package store

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/store/storetest"
)

// peerCluster is what several members on this machine share.
type peerCluster struct {
	t     *testing.T
	ca    *pki.Authority
	caDir string
}

func newPeerCluster(t *testing.T) *peerCluster {
	t.Helper()
	p := &peerCluster{t: t, caDir: filepath.Join(t.TempDir(), "ca")}
	var err error
	if p.ca, err = pki.NewCluster(p.caDir); err != nil {
		t.Fatal(err)
	}
	return p
}

// config is a member called name with a fresh address and directory.
func (p *peerCluster) config(name string) Config {
	p.t.Helper()
	addr := storetest.FreeAddr(p.t)
	dir := p.t.TempDir()
	m, err := p.ca.EnsureMember(filepath.Join(dir, "member.pem"), p.caDir)
	if err != nil {
		p.t.Fatal(err)
	}
	cfg := testConfig(p.t, filepath.Join(dir, "store"))
	cfg.Name = name
	cfg.Peers = &Peers{Listen: addr, Advertise: addr, CertFile: m.File, CAFile: m.CAFile, CertName: m.Name}
	return cfg
}

// join adds a member to the store s and opens it.
func (p *peerCluster) join(s *Store, cfg Config) *Store {
	p.t.Helper()
	initial, err := s.AddMember(p.t.Context(), cfg.Name, cfg.Peers.Advertise)
	if err != nil {
		p.t.Fatal(err)
	}
	cfg.Peers.Initial, cfg.Peers.Join = initial, true
	joined, err := Open(p.t.Context(), cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	closeLater(p.t, joined)
	return joined
}

func closeLater(t *testing.T, s *Store) {
	t.Helper()
	t.Cleanup(func() { s.Close() })
}

// within retries f until it succeeds.
func within(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func TestOneMemberGrowsToThreeAndLosesTwo(t *testing.T) {
	p, ctx := newPeerCluster(t), t.Context()
	// It began alone, without a port.
	cfg := p.config("a")
	peers := cfg.Peers
	cfg.Peers, cfg.Name = nil, ""
	alone, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, alone, fn("old", 1))
	_, err = alone.AddMember(ctx, "b", "127.0.0.1:9")
	wantCode(t, err, api.CodeUnavailable)
	if err := alone.Close(); err != nil {
		t.Fatal(err)
	}

	cfg.Peers, cfg.Name = peers, "a"
	a := openStore(t, cfg)
	cfgB, cfgC := p.config("b"), p.config("c")
	b := p.join(a, cfgB)
	_, err = a.AddMember(ctx, "b", "127.0.0.1:9")
	wantCode(t, err, api.CodeConflict)
	c := p.join(b, cfgC)
	if _, err := c.GetFunction(ctx, fn("old", 1).Name); err != nil {
		t.Fatalf("what was there before is not known to the third: %v", err)
	}
	members, err := c.Members(ctx)
	if err != nil || len(members) != 3 {
		t.Fatalf("members %v, %v", members, err)
	}
	for _, m := range members {
		if m.Learner || m.Name == "" {
			t.Errorf("%+v is no full member", m)
		}
	}

	// One is gone: writes go on, and a watch on another member sees them.
	cache := runCache(t, c)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "write with two of three", func() error {
		_, err := a.PutFunction(ctx, fn("new", 2), AnyVersion)
		return err
	})
	waitFor(t, "the other's cache", func() bool { return cache.Get(fn("new", 2).Name) != nil })

	// It is lost for good: removed, replaced under the same name.
	if err := a.RemoveMember(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	b2 := p.join(c, p.config("b"))
	if _, err := b2.GetFunction(ctx, fn("new", 2).Name); err != nil {
		t.Fatal(err)
	}
	// The lost one does not come back with its old directory.
	cfgB.Peers.Join = true
	octx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if back, err := Open(octx, cfgB); err == nil {
		back.Close()
		t.Fatal("a member that was removed came back")
	}

	// With one of three nothing is written, which it knows and says soon; what
	// is known stays known.
	if err := b2.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the last one notices", func() error {
		if c.Majority() == nil {
			return fmt.Errorf("it believes in a majority")
		}
		return nil
	})
	_, err = c.PutFunction(ctx, fn("never", 3), AnyVersion)
	wantCode(t, err, api.CodeUnavailable)
	if cache.Get(fn("new", 2).Name) == nil {
		t.Fatal("a function that was known is not any longer")
	}

	// Most are lost for good: one goes on alone.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	cfgC.Peers.ForgetOthers = true
	last := openStore(t, cfgC)
	mustPut(t, last, fn("after", 4))
	if _, err := last.GetFunction(ctx, fn("new", 2).Name); err != nil {
		t.Fatal(err)
	}
	members, err = last.Members(ctx)
	if err != nil || len(members) != 1 {
		t.Fatalf("members %v, %v", members, err)
	}
}

func TestThreeMembersStartTogether(t *testing.T) {
	p := newPeerCluster(t)
	cfgs := []Config{p.config("a"), p.config("b"), p.config("c")}
	initial := map[string]string{}
	for _, c := range cfgs {
		initial[c.Name] = c.Peers.Advertise
	}
	opened := make(chan error, len(cfgs))
	stores := make([]*Store, len(cfgs))
	for i, c := range cfgs {
		c.Peers.Initial = initial
		go func() {
			var err error
			stores[i], err = Open(t.Context(), c)
			opened <- err
		}()
	}
	for range cfgs {
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range stores {
		closeLater(t, s)
	}
	terms, _ := campaignFor(t, stores[0], "a")
	first := nextTerm(t, terms, 4*leadTTL)
	others, _ := campaignFor(t, stores[1], "b")
	// Its process ends as a whole: another leads, with a greater fence.
	if err := stores[0].Close(); err != nil {
		t.Fatal(err)
	}
	if second := nextTerm(t, others, 6*leadTTL); second.fence <= first.fence {
		t.Fatalf("fence %d after %d", second.fence, first.fence)
	}
}

func TestOnlyMembersOfThisClusterArePeers(t *testing.T) {
	p, stranger := newPeerCluster(t), newPeerCluster(t)
	cfg := p.config("a")
	openStore(t, cfg)
	keyPEM, certPEM, err := p.ca.Issue(pki.RoleNode, "node-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "node.pem")
	if err := os.WriteFile(node, append(keyPEM, certPEM...), 0o600); err != nil {
		t.Fatal(err)
	}
	for who, tc := range map[string]struct {
		file string
		ok   bool
	}{"member": {p.config("b").Peers.CertFile, true}, "node": {node, false},
		"stranger": {stranger.config("x").Peers.CertFile, false}, "nobody": {"", false}} {
		tlsCfg := &tls.Config{InsecureSkipVerify: true}
		if tc.file != "" {
			pair, err := tls.LoadX509KeyPair(tc.file, tc.file)
			if err != nil {
				t.Fatal(err)
			}
			tlsCfg.Certificates = []tls.Certificate{pair}
		}
		if err := speak(cfg.Peers.Listen, tlsCfg); (err == nil) != tc.ok {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// speak asks a member for its version; in TLS 1.3 a refusal shows with the
// first read.
func speak(addr string, cfg *tls.Config) error {
	conn, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("GET /version HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 16))
	return err
}
