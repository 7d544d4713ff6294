package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func leafOf(t *testing.T, a *Authority, role Role, id string, ttl time.Duration) *x509.Certificate {
	t.Helper()
	_, certPEM, err := a.Issue(role, id, ttl)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCert(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAKnownChainIsAsGoodAsVerifyChainSays(t *testing.T) {
	a, other := testCluster(t), testCluster(t)
	leaf := leafOf(t, a, RoleNode, "n1", 4*time.Minute)
	now := time.Now()
	cases := map[string]struct {
		ca *x509.Certificate
		at time.Time
		ok bool
	}{
		"at once":                   {a.cert, now, true},
		"minutes later":             {a.cert, now.Add(3 * time.Minute), true},
		"the clock was set back":    {a.cert, now.Add(-30 * time.Second), true}, // certificates begin a little before they are made
		"before it was made":        {a.cert, leaf.NotBefore.Add(-time.Second), false},
		"after its end":             {a.cert, leaf.NotAfter.Add(time.Second), false},
		"another cluster":           {other.cert, now, false},
		"the authority has ended":   {ended(a.cert, now), now, false},
		"an authority of that name": {renamed(t, a, other), now, false},
	}
	for name, k := range cases {
		t.Run(name, func(t *testing.T) {
			var c Chains
			if p, got, err := c.Verify(leaf.Raw, a.cert, now); err != nil || p.ID != "n1" || !got.Equal(leaf) {
				t.Fatal(p, err)
			}
			_, want := VerifyChain(leaf, k.ca, k.at)
			if _, _, err := c.Verify(leaf.Raw, k.ca, k.at); (err == nil) != k.ok || (want == nil) != k.ok {
				t.Errorf("error %v, VerifyChain says %v", err, want)
			}
		})
	}
}

// ended is ca as it looks once its time is over; its bytes do not matter here.
func ended(ca *x509.Certificate, now time.Time) *x509.Certificate {
	c := *ca
	c.NotAfter = now.Add(-time.Second)
	return &c
}

// renamed is other's key under a's name.
func renamed(t *testing.T, a, other *Authority) *x509.Certificate {
	t.Helper()
	tmpl := *a.cert
	tmpl.PublicKey = &other.key.PublicKey
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, &other.key.PublicKey, other.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestChangedCertificatesAreRefusedAsBefore(t *testing.T) {
	a := testCluster(t)
	leaf := leafOf(t, a, RoleNode, "n1", time.Hour)
	var c Chains
	if _, _, err := c.Verify(leaf.Raw, a.cert, time.Now()); err != nil {
		t.Fatal(err)
	}
	for i := range leaf.Raw {
		b := bytes.Clone(leaf.Raw)
		b[i] ^= 1
		if _, _, err := c.Verify(b, a.cert, time.Now()); err == nil {
			t.Errorf("byte %d changed: taken", i)
		} else {
			wantCode(t, err, api.CodeUnauthorized)
		}
	}
	if len(c.byHash) != 1 {
		t.Errorf("%d certificates are remembered", len(c.byHash))
	}
}

func TestChainsAreFewAndOnePerPeer(t *testing.T) {
	a := testCluster(t)
	var c Chains
	now := time.Now()
	for range 3 { // who renews often displaces its own
		if _, _, err := c.Verify(leafOf(t, a, RoleNode, "n1", time.Hour).Raw, a.cert, now); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.byHash) != 1 || len(c.byPeer) != 1 {
		t.Errorf("%d certificates of %d peers", len(c.byHash), len(c.byPeer))
	}
	leaf := leafOf(t, a, RoleNode, "last", time.Hour)
	for i := range 2 * maxChains {
		c.keep([32]byte{byte(i), byte(i >> 8), 1}, &chain{leaf: leaf, ca: a.cert, peer: Peer{ID: fmt.Sprint(i)}, at: now})
	}
	if len(c.byHash) != maxChains || len(c.byPeer) != maxChains {
		t.Errorf("%d certificates of %d peers", len(c.byHash), len(c.byPeer))
	}
	if _, _, err := c.Verify(leaf.Raw, a.cert, now); err != nil {
		t.Errorf("one that finds no room: %v", err)
	}
	now = now.Add(chainLife + time.Second)
	if _, _, err := c.Verify(leaf.Raw, a.cert, now); err != nil || len(c.byHash) != 1 || len(c.byPeer) != 1 {
		t.Errorf("%v; %d certificates of %d peers when all were old", err, len(c.byHash), len(c.byPeer))
	}
}
