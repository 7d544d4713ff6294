package store

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store/storetest"
)

// lines counts what is logged about the wait.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte(text))
}

func TestAnEtcdThatStartsLaterIsAwaited(t *testing.T) {
	addr := storetest.FreeAddr(t)
	cfg := testConfig(t, "")
	told := &lines{}
	cfg.Log = slog.New(slog.NewTextHandler(told, nil))
	cfg.Endpoints, cfg.Timeout = []string{"http://" + addr}, 500*time.Millisecond
	var tries atomic.Int64
	done := make(chan error, 1)
	var s *Store
	go func() {
		var err error
		s, err = Await(t.Context(), cfg, func(why error) {
			if api.CodeOf(why) != api.CodeUnavailable || !strings.Contains(why.Error(), "connection refused") {
				t.Errorf("it waits because of %v", why)
			}
			tries.Add(1)
		})
		done <- err
	}()
	waitFor(t, "three attempts", func() bool { return tries.Load() >= 3 })
	if n := told.count("the store is away"); n != 1 {
		t.Errorf("said %d times after %d attempts", n, tries.Load())
	}
	storetest.Serve(t, url.URL{Scheme: "http", Host: addr}, transport.TLSInfo{})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	closeLater(t, s)
	if _, err := s.PutFunction(t.Context(), fn("f", 1), Absent); err != nil {
		t.Error(err)
	}
}

// authority is one that signs for this machine's loopback.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string // its certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem")}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.write(t, a.file, "CERTIFICATE", a.sign(t, a.cert, a.key))
	return a
}

func (a *authority) sign(t *testing.T, c *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (a *authority) write(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes a certificate of this machine, for servers and clients.
func (a *authority) issue(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	a.write(t, keyFile, "EC PRIVATE KEY", der)
	a.write(t, certFile, "CERTIFICATE", a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, key))
	return certFile, keyFile
}

// client is who shows a certificate of a and believes believed.
func (a *authority) client(t *testing.T, believed *authority) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(a.issue(t))
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}}
	b, err := os.ReadFile(believed.file)
	if err != nil || !c.RootCAs.AppendCertsFromPEM(b) {
		t.Fatal(err)
	}
	return c
}

// Waiting cures none of these, so they end it at once.
func TestCertificatesThatDoNotFitAreNotWaitedFor(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	addr := storetest.FreeAddr(t)
	cert, key := ours.issue(t)
	storetest.Serve(t, url.URL{Scheme: "https", Host: addr},
		transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: ours.file, ClientCertAuth: true, MinVersion: tls.VersionTLS13})
	right, strange, unbelieving := ours.client(t, ours), others.client(t, ours), ours.client(t, others)
	nameless := right.Clone()
	nameless.Certificates = nil
	for what, c := range map[string]struct {
		addr string
		tls  *tls.Config
		code api.Code
	}{
		"all is right":              {addr, right, ""},
		"another's certificate":     {addr, strange, api.CodeForbidden},
		"no certificate":            {addr, nameless, api.CodeForbidden},
		"an authority of others":    {addr, unbelieving, api.CodeForbidden},
		"an address without a port": {"127.0.0.1", right, api.CodeInvalid},
		"a port that is no number":  {"127.0.0.1:etcd", right, api.CodeInvalid},
		"an address with a path":    {"127.0.0.1:2379/v3", right, api.CodeInvalid},
	} {
		cfg := testConfig(t, "")
		cfg.Endpoints, cfg.TLS, cfg.Timeout = []string{"https://" + c.addr}, c.tls, 2*time.Second
		ctx, cancel := context.WithCancel(t.Context())
		s, err := Await(ctx, cfg, func(why error) {
			t.Errorf("%s: it waits: %v", what, why)
			cancel()
		})
		cancel()
		if err == nil {
			closeLater(t, s)
		}
		if api.CodeOf(err) != c.code && (err != nil || c.code != "") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAnEtcdElsewhereThatGoesIsSaidToBeAway(t *testing.T) {
	e := startEtcd(t)
	s := e.open(t)
	if err := s.Majority(); err != nil {
		t.Fatal(err)
	}
	e.setCut(true)
	waitFor(t, "it to be away", func() bool { return api.CodeOf(s.Majority()) == api.CodeUnavailable })
	e.setCut(false)
	waitFor(t, "it to be back", func() bool { return s.Majority() == nil })
}
