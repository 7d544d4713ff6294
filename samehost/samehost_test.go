package samehost

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority makes certificates that its configurations accept.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	return a
}

func (a *authority) sign(tmpl, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.Subject = big.NewInt(1), pkix.Name{CommonName: "x"}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) config() *tls.Config {
	leaf, key := a.sign(&x509.Certificate{DNSNames: []string{"peer"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, a.cert, a.key)
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "peer", RootCAs: pool, ClientCAs: pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}}
}

func socket(t *testing.T) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln, path
}

// echoes serves ln until it is closed, and reports each connection's error.
func echoes(t *testing.T, ln net.Listener) <-chan error {
	ended := make(chan error, 16)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
				_, err := io.Copy(c, c)
				ended <- err
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ended
}

func dial(t *testing.T, path string, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return Dial(ctx, path, config)
}

func TestBytesPassOnceBothAreKnown(t *testing.T) {
	a := newAuthority(t)
	ln, path := socket(t)
	echoes(t, NewListener(ln, a.config()))
	c, err := dial(t, path, a.config())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(interface{ ConnectionState() tls.ConnectionState }); ok {
		t.Error("records go on after the handshake")
	}
	want := bytes.Repeat([]byte("plain "), 10_000)
	go c.Write(want)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
}

func TestStrangersCertificatesAreRefusedAtBothEnds(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	for _, test := range []struct {
		name           string
		server, client *tls.Config
	}{
		{"a client of another authority", ours.config(), theirs.config()},
		{"a client without certificate", ours.config(), func() *tls.Config { c := ours.config(); c.Certificates = nil; return c }()},
		{"a server of another name", ours.config(), func() *tls.Config { c := ours.config(); c.ServerName = "other"; return c }()},
	} {
		t.Run(test.name, func(t *testing.T) {
			ln, path := socket(t)
			ended := echoes(t, NewListener(ln, test.server))
			if c, err := dial(t, path, test.client); err == nil {
				c.Close()
				t.Fatal("taken")
			}
			if err := <-ended; err == nil {
				t.Error("the server saw nothing wrong")
			}
		})
	}
}

func TestTheAcceptingEndKnowsWhoIsThere(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	for _, client := range []*authority{ours, theirs} {
		raw, path := socket(t)
		ln := NewListener(raw, ours.config())
		type end struct {
			state tls.ConnectionState
			err   error
		}
		got := make(chan end, 1)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				got <- end{err: err}
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			s := c.(interface {
				Handshake() error
				ConnectionState() tls.ConnectionState
			})
			got <- end{s.ConnectionState(), s.Handshake()}
		}()
		config := client.config()
		if c, err := dial(t, path, config); err == nil {
			defer c.Close()
		}
		e := <-got
		if client == ours && (e.err != nil || !e.state.HandshakeComplete || !bytes.Equal(e.state.PeerCertificates[0].Raw, config.Certificates[0].Certificate[0])) {
			t.Errorf("a peer: %v, %+v", e.err, e.state)
		}
		if client == theirs && (e.err == nil || e.state.HandshakeComplete || len(e.state.PeerCertificates) > 0) {
			t.Errorf("a stranger: %v, %+v", e.err, e.state)
		}
	}
}

// A relay of the handshake to or from a port that goes on with records must
// not end with one side in clear.
func TestOrdinaryTLSIsNoPeer(t *testing.T) {
	a := newAuthority(t)
	t.Run("server", func(t *testing.T) {
		ln, path := socket(t)
		echoes(t, tls.NewListener(ln, a.config()))
		if c, err := dial(t, path, a.config()); err == nil {
			c.Close()
			t.Fatal("taken")
		}
	})
	t.Run("client", func(t *testing.T) {
		ln, path := socket(t)
		ended := echoes(t, NewListener(ln, a.config()))
		c, err := tls.Dial("unix", path, a.config())
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err = c.Write([]byte("x")); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
		}
		if err == nil {
			t.Error("the client was answered")
		}
		if err := <-ended; err == nil {
			t.Error("the server saw nothing wrong")
		}
	})
}

func TestSilentServerEndsWithTheContext(t *testing.T) {
	a := newAuthority(t)
	_, path := socket(t) // nobody accepts
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path, a.config()); err == nil {
		t.Fatal("taken")
	}
}

func TestOtherUsersProcessIsAStranger(t *testing.T) {
	p, q := net.Pipe()
	defer p.Close()
	defer q.Close()
	if err := sameUser(p); !errors.Is(err, ErrStranger) {
		t.Errorf("what is no socket: %v", err)
	}
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root, to become another user")
		}
		t.Skip("needs root, to become another user")
	}
	// t.TempDir lies below a directory that others may not enter.
	dir, err := os.MkdirTemp("", "samehost")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t)
	ended := echoes(t, NewListener(ln, a.config()))
	connectAs(t, path, 65534)
	if err := <-ended; !errors.Is(err, ErrStranger) || !strings.Contains(err.Error(), "user") {
		t.Errorf("another user's connection: %v", err)
	}
}
