package pki

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// clock is a test's time.
type clock struct{ ns atomic.Int64 }

func newClock() *clock                   { c := &clock{}; c.ns.Store(time.Now().UnixNano()); return c }
func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

func clusterAt(t *testing.T, c *clock) *Authority {
	t.Helper()
	a, err := newCluster(t.TempDir(), c.now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestHandshakeUsesAReplacedFile(t *testing.T) {
	c := newClock()
	a := clusterAt(t, c)
	path := filepath.Join(t.TempDir(), "identity.pem")
	srv, err := EnsureIdentity(path, a, RoleNode, "n1", time.Hour, quiet())
	if err != nil {
		t.Fatal(err)
	}
	client := ClientConfig(testIdentity(t, a, RoleCoordinator, "c1"), RoleNode, "n1")
	serial := func() string {
		cs, _, ce, se := handshake(t, ServerConfig(srv, RoleCoordinator), client)
		if ce != nil || se != nil {
			t.Fatal(ce, se)
		}
		return cs.PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	keyPEM, certPEM, err := a.Issue(RoleNode, "n1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := SaveIdentity(path, keyPEM, certPEM, a.CertificatePEM()); err != nil {
		t.Fatal(err)
	}
	c.advance(2 * recheck)
	if serial() == first {
		t.Fatal("the old certificate is still served")
	}
}

func TestUnusableFileKeepsTheLastGoodCertificate(t *testing.T) {
	c := newClock()
	a := clusterAt(t, c)
	dir := t.TempDir()
	path := filepath.Join(dir, "identity.pem")
	i, err := EnsureIdentity(path, a, RoleNode, "n1", time.Hour, quiet())
	if err != nil {
		t.Fatal(err)
	}
	want := i.current().leaf.SerialNumber
	keyPEM, certPEM, err := a.Issue(RoleCoordinator, "n1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"noise":       func() error { return writeFile(path, []byte("noise"), 0o600) },
		"another one": func() error { return SaveIdentity(path, keyPEM, certPEM, a.CertificatePEM()) },
		"removed":     func() error { return os.Remove(path) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(name, err)
		}
		c.advance(2 * recheck)
		if got := i.current().leaf.SerialNumber; got.Cmp(want) != 0 {
			t.Fatalf("%s: the certificate changed", name)
		}
	}
}

// A certificate that a machine with a clock ahead of ours issued begins later: it is
// taken over then, without another change of its file, and told of once.
func TestCertificateThatIsNotYetValidIsTakenOverWhenItIs(t *testing.T) {
	c := newClock()
	a := clusterAt(t, c)
	path := filepath.Join(t.TempDir(), "identity.pem")
	if _, err := EnsureIdentity(path, a, RoleNode, "n1", 24*time.Hour, quiet()); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	i, err := loadIdentity(path, slog.New(slog.NewTextHandler(&said, nil)), c.now)
	if err != nil {
		t.Fatal(err)
	}
	first := i.current().leaf.SerialNumber
	ahead := *a
	ahead.now = func() time.Time { return c.now().Add(time.Hour) }
	keyPEM, certPEM, err := ahead.Issue(RoleNode, "n1", 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := saveIdentity(path, keyPEM, certPEM, a.CertificatePEM(), ahead.now()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.advance(2 * recheck)
		if i.current().leaf.SerialNumber.Cmp(first) != 0 {
			t.Fatal("a certificate that is not yet valid is in use")
		}
	}
	if n := strings.Count(said.String(), "cannot be used"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &said)
	}
	c.advance(time.Hour)
	if i.current().leaf.SerialNumber.Cmp(first) == 0 {
		t.Error("the new certificate is valid, and not in use")
	}
	// A file that is gone is told of once, too.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.advance(2 * recheck)
		i.current()
	}
	if n := strings.Count(said.String(), "cannot be used"); n != 2 {
		t.Errorf("told %d times:\n%s", n, &said)
	}
}

func TestSaveRefusesAMismatch(t *testing.T) {
	a := testCluster(t)
	k1, _, err := a.Issue(RoleNode, "n1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	k2, c2, err := a.Issue(RoleNode, "n1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "identity.pem")
	if SaveIdentity(path, k1, c2, a.CertificatePEM()) == nil {
		t.Fatal("foreign key saved")
	}
	if SaveIdentity(path, k2, c2, testCluster(t).CertificatePEM()) == nil {
		t.Fatal("foreign authority saved")
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a refused identity left a file")
	}
	_, err = LoadIdentity(path, quiet())
	wantCode(t, err, api.CodeNotFound)
}

func TestEnsureIdentityReissuesWhenDue(t *testing.T) {
	c := newClock()
	a := clusterAt(t, c)
	path := filepath.Join(t.TempDir(), "identity.pem")
	issue := func() string {
		i, err := EnsureIdentity(path, a, RoleCoordinator, "c1", 3*time.Hour, quiet())
		if err != nil {
			t.Fatal(err)
		}
		return i.current().leaf.SerialNumber.String()
	}
	first := issue()
	if issue() != first {
		t.Fatal("a fresh certificate was replaced")
	}
	c.advance(150 * time.Minute)
	second := issue()
	if second == first {
		t.Fatal("a due certificate was kept")
	}
	c.advance(100 * time.Hour) // long expired
	if issue() == second {
		t.Fatal("an expired certificate was kept")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureIdentity(path, a, RoleCoordinator, "c1", time.Hour, quiet()); err == nil {
		t.Fatal("a key that others can read was overwritten in silence")
	}
}

func TestRenewRefusesAnotherIdentity(t *testing.T) {
	a := testCluster(t)
	i := testIdentity(t, a, RoleNode, "n1")
	if err := i.Renew(t.Context(), a.SignFunc(RoleNode, "n2", time.Hour)); err == nil {
		t.Fatal("another id was taken over")
	}
	if err := i.Renew(t.Context(), testCluster(t).SignFunc(RoleNode, "n1", time.Hour)); err == nil {
		t.Fatal("another cluster was taken over")
	}
	was := i.current().leaf.SerialNumber
	if err := i.Renew(t.Context(), a.SignFunc(RoleNode, "n1", time.Hour)); err != nil {
		t.Fatal(err)
	}
	if i.current().leaf.SerialNumber.Cmp(was) == 0 {
		t.Fatal("not renewed")
	}
}

func TestKeepRenewedRenewsAndEnds(t *testing.T) {
	c := newClock()
	a := clusterAt(t, c)
	path := filepath.Join(t.TempDir(), "identity.pem")
	i, err := EnsureIdentity(path, a, RoleNode, "n1", time.Hour, quiet())
	if err != nil {
		t.Fatal(err)
	}
	was := i.NotAfter()
	c.advance(50 * time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.KeepRenewed(ctx, a.SignFunc(RoleNode, "n1", time.Hour)) }()
	for deadline := time.Now().Add(10 * time.Second); !i.NotAfter().After(was); {
		if time.Now().After(deadline) {
			t.Fatal("never renewed")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	again, err := loadIdentity(path, quiet(), c.now)
	if err != nil || !again.NotAfter().After(was) {
		t.Fatal("the file was not renewed", err)
	}
}

func TestManyHandshakesWhileRenewing(t *testing.T) {
	a := testCluster(t)
	path := filepath.Join(t.TempDir(), "identity.pem")
	i, err := EnsureIdentity(path, a, RoleNode, "n1", time.Hour, quiet())
	if err != nil {
		t.Fatal(err)
	}
	client := ClientConfig(testIdentity(t, a, RoleCoordinator, "c1"), RoleNode, "n1")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if _, _, ce, se := handshake(t, ServerConfig(i, RoleCoordinator), client); ce != nil || se != nil {
					t.Error(ce, se)
				}
			}
		})
	}
	for range 5 {
		if err := i.Renew(t.Context(), a.SignFunc(RoleNode, "n1", time.Hour)); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}
