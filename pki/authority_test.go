package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func testCluster(t *testing.T) *Authority {
	t.Helper()
	a, err := NewCluster(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func testIdentity(t *testing.T, a *Authority, role Role, id string) *Identity {
	t.Helper()
	keyPEM, certPEM, err := a.Issue(role, id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	i, err := newIdentity(keyPEM, certPEM, a.CertificatePEM(), a.now)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func wantCode(t *testing.T, err error, code api.Code) {
	t.Helper()
	if api.CodeOf(err) != code {
		t.Fatalf("got error %v, want code %s", err, code)
	}
}

func TestClusterSurvivesReload(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := NewCluster(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a.ClusterID() != b.ClusterID() || a.Hash() != b.Hash() {
		t.Fatal("reloaded authority differs")
	}
	st, err := os.Stat(filepath.Join(dir, caKeyFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("key file: mode %v, %v", st.Mode(), err)
	}
	_, err = NewCluster(dir)
	wantCode(t, err, api.CodeConflict)
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Fatalf("temporary files remain: %v", left)
	}
}

func TestLoadRefusesWhatIsNotSafe(t *testing.T) {
	_, err := Load(t.TempDir())
	wantCode(t, err, api.CodeNotFound)

	dir := t.TempDir()
	if _, err := NewCluster(dir); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, caKeyFile)
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Fatalf("a key open to the group was loaded: %v", err)
	}
	foreign := t.TempDir()
	if _, err := NewCluster(foreign); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(foreign, caKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not the key") {
		t.Fatalf("another authority's key was loaded: %v", err)
	}
}

func TestCertificateNamesItsHolder(t *testing.T) {
	a := testCluster(t)
	i := testIdentity(t, a, RoleNode, "rack-1.host-2")
	want := Peer{Cluster: a.ClusterID(), Role: RoleNode, ID: "rack-1.host-2"}
	if i.Peer() != want {
		t.Fatalf("got %v, want %v", i.Peer(), want)
	}
	if got := want.String(); got != "faasd-sec://"+a.ClusterID()+"/node/rack-1.host-2" {
		t.Fatal(got)
	}
}

func TestSignRefusesBadInput(t *testing.T) {
	a := testCluster(t)
	for _, c := range []struct {
		role Role
		id   string
		ttl  time.Duration
	}{
		{"root", "a", time.Hour}, {RoleNode, "", time.Hour}, {RoleNode, "a/b", time.Hour},
		{RoleNode, "a?b", time.Hour}, {RoleNode, "../x", time.Hour}, {RoleNode, "A", time.Hour},
		{RoleNode, "a%2f", time.Hour}, {RoleNode, "a", 0}, {RoleNode, "a", MaxTTL + 1},
		{RoleNode, "-a", time.Hour}, {RoleNode, strings.Repeat("a", 64), time.Hour},
	} {
		_, _, err := a.Issue(c.role, c.id, c.ttl)
		wantCode(t, err, api.CodeInvalid)
	}
}

func TestRequestIsOnlyAWish(t *testing.T) {
	a := testCluster(t)
	keyPEM, csr, err := NewRequest("node-1")
	if err != nil {
		t.Fatal(err)
	}
	req, err := ParseRequest(csr)
	if err != nil || req.ID != "node-1" {
		t.Fatal(req, err)
	}
	certPEM, err := a.Sign(req, RoleNode, "node-9", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewIdentity(keyPEM, certPEM, a.CertificatePEM())
	if err != nil || i.Peer().ID != "node-9" {
		t.Fatal(err)
	}
}

func TestRequestWithExtrasGetsNoneOfThem(t *testing.T) {
	a := testCluster(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	evil, _ := url.Parse("faasd-sec://" + a.ClusterID() + "/coordinator/evil")
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "node-1"}, URIs: []*url.URL{evil}, DNSNames: []string{"evil"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	req, err := ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := a.Sign(req, RoleNode, req.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := parseCert(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	p, err := VerifyChain(leaf, a.cert, time.Now())
	if err != nil || p.Role != RoleNode || p.ID != "node-1" {
		t.Fatal(p, err)
	}
}

func TestRequestRefusals(t *testing.T) {
	_, good, err := NewRequest("n")
	if err != nil {
		t.Fatal(err)
	}
	broken := append([]byte(nil), good...)
	broken[len(broken)-1] ^= 1
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: "n"}}, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, csr := range map[string][]byte{
		"empty": nil, "noise": []byte("hello"), "signature": broken, "rsa": foreign,
		"long": make([]byte, maxRequestLen+1), "trailing": append(append([]byte(nil), good...), 0),
	} {
		if _, err := ParseRequest(csr); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	_, good, err := NewRequest("n")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) { ParseRequest(b) })
}
