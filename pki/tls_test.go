package pki

import (
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
	"net/url"
	"strings"
	"testing"
	"time"
)

// handshake runs both sides over a pipe and moves a byte each way, as in TLS
// 1.3 a client learns of its refusal only when it reads.
func handshake(t *testing.T, server, client *tls.Config) (cs, ss tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		defer a.Close()
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		done <- err
	}()
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	b.Close()
	serverErr = <-done
	return c.ConnectionState(), s.ConnectionState(), clientErr, serverErr
}

func mustFail(t *testing.T, server, client *tls.Config, want string) {
	t.Helper()
	_, _, ce, se := handshake(t, server, client)
	if ce == nil || se == nil {
		t.Fatalf("handshake went through: client %v, server %v", ce, se)
	}
	if got := errors.Join(ce, se).Error(); !strings.Contains(got, want) {
		t.Fatalf("refused, but for another reason: %q, want %q", got, want)
	}
}

func TestPeersOfOneClusterMeet(t *testing.T) {
	a := testCluster(t)
	node, coord := testIdentity(t, a, RoleNode, "n1"), testIdentity(t, a, RoleCoordinator, "c1")
	for _, id := range []string{"n1", AnyID} {
		cs, ss, ce, se := handshake(t, ServerConfig(node, RoleCoordinator), ClientConfig(coord, RoleNode, id))
		if ce != nil || se != nil {
			t.Fatal(ce, se)
		}
		if p, err := PeerIdentity(&ss); err != nil || p != coord.Peer() {
			t.Fatal(p, err)
		}
		if p, err := PeerIdentity(&cs); err != nil || p != node.Peer() {
			t.Fatal(p, err)
		}
		if cs.Version != tls.VersionTLS13 {
			t.Fatalf("version %x", cs.Version)
		}
	}
}

func TestWrongRoleOrIDIsRefused(t *testing.T) {
	a := testCluster(t)
	node, coord := testIdentity(t, a, RoleNode, "n1"), testIdentity(t, a, RoleCoordinator, "c1")
	mustFail(t, ServerConfig(node, RoleCoordinator), ClientConfig(node, RoleNode, AnyID), "not accepted here")
	mustFail(t, ServerConfig(node), ClientConfig(coord, RoleNode, AnyID), "not accepted here")
	mustFail(t, ServerConfig(node, RoleCoordinator), ClientConfig(coord, RoleKeyBroker, AnyID), "expected keybroker")
	mustFail(t, ServerConfig(node, RoleCoordinator), ClientConfig(coord, RoleNode, "n2"), `expected node "n2"`)
	mustFail(t, ServerConfig(node, RoleCoordinator), ClientConfig(coord, RoleNode, ""), `expected node ""`)
}

func TestOtherClusterIsRefusedBothWays(t *testing.T) {
	a, b := testCluster(t), testCluster(t)
	ours, theirs := testIdentity(t, a, RoleNode, "n1"), testIdentity(t, b, RoleCoordinator, "c1")
	mustFail(t, ServerConfig(ours, RoleCoordinator), ClientConfig(theirs, RoleNode, AnyID), "not valid in this cluster")
	trusting := ClientConfig(theirs, RoleNode, AnyID)
	trusting.VerifyConnection = nil
	mustFail(t, ServerConfig(ours, RoleCoordinator), trusting, "not valid in this cluster")
}

// An attacker makes an authority whose certificate says exactly what the true
// one says, but for the key.
func TestSelfMadeAuthorityOfTheSameNameIsRefused(t *testing.T) {
	a := testCluster(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fake := *a.cert
	fake.Raw, fake.SignatureAlgorithm, fake.PublicKey = nil, 0, nil
	der, err := x509.CreateCertificate(rand.Reader, &fake, &fake, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	evil := &Authority{cert: ca, key: key, cluster: a.cluster, now: time.Now}
	node := testIdentity(t, a, RoleNode, "n1")
	coord := testIdentity(t, evil, RoleCoordinator, "c1")
	trusting := ClientConfig(coord, RoleNode, AnyID)
	trusting.VerifyConnection = nil
	mustFail(t, ServerConfig(node, RoleCoordinator), trusting, "not valid in this cluster")

	tok, err := NewToken(a.Hash())
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, OptionalPeerConfig(coord), JoinClientConfig(tok), "does not belong to the cluster of this token")
}

func TestExpiredIsRefusedInRunningProcess(t *testing.T) {
	a := testCluster(t)
	now := time.Now()
	later := func() time.Time { return now.Add(2 * time.Hour) }
	coord := testIdentity(t, a, RoleCoordinator, "c1") // valid for one hour
	keyPEM, certPEM, err := a.Issue(RoleNode, "n1", 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	node, err := newIdentity(keyPEM, certPEM, a.CertificatePEM(), later)
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, ServerConfig(node, RoleCoordinator), ClientConfig(coord, RoleNode, AnyID), "expired")
	mustFail(t, ServerConfig(coord, RoleNode), ClientConfig(node, RoleCoordinator, AnyID), "expired")
}

func TestOldTLSIsRefused(t *testing.T) {
	a := testCluster(t)
	node, coord := testIdentity(t, a, RoleNode, "n1"), testIdentity(t, a, RoleCoordinator, "c1")
	old := ClientConfig(coord, RoleNode, AnyID)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	mustFail(t, ServerConfig(node, RoleCoordinator), old, "version")
	oldServer := ServerConfig(node, RoleCoordinator)
	oldServer.MinVersion, oldServer.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	mustFail(t, oldServer, ClientConfig(coord, RoleNode, AnyID), "version")
}

func TestClientWithoutCertificate(t *testing.T) {
	a := testCluster(t)
	coord := testIdentity(t, a, RoleCoordinator, "c1")
	tok, err := NewToken(a.Hash())
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, ServerConfig(coord, RoleNode), JoinClientConfig(tok), "certificate")
	_, ss, ce, se := handshake(t, OptionalPeerConfig(coord, RoleNode), JoinClientConfig(tok))
	if ce != nil || se != nil {
		t.Fatal(ce, se)
	}
	if _, err := PeerIdentity(&ss); err == nil {
		t.Fatal("somebody without certificate has an identity")
	}
	foreign := testIdentity(t, testCluster(t), RoleNode, "n1")
	trusting := ClientConfig(foreign, RoleCoordinator, AnyID)
	trusting.VerifyConnection = nil
	mustFail(t, OptionalPeerConfig(coord, RoleNode), trusting, "not valid in this cluster")
}

func TestJoinAcceptsOnlyACoordinatorOfTheTokensCluster(t *testing.T) {
	a, b := testCluster(t), testCluster(t)
	tok, err := NewToken(b.Hash())
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, OptionalPeerConfig(testIdentity(t, a, RoleCoordinator, "c1")), JoinClientConfig(tok), "this token")
	mustFail(t, OptionalPeerConfig(testIdentity(t, b, RoleNode, "n1")), JoinClientConfig(tok), "not accepted here")

	// The true authority shown next to a certificate that another one signed.
	mixed := testIdentity(t, a, RoleCoordinator, "c1")
	mixed.cur.Load().tls.Certificate = [][]byte{mixed.cur.Load().leaf.Raw, b.cert.Raw}
	mustFail(t, OptionalPeerConfig(mixed), JoinClientConfig(tok), "not valid in this cluster")

	if err := tok.CheckCA(a.CertificatePEM()); err == nil {
		t.Fatal("the wrong authority was accepted from a join reply")
	}
	if err := tok.CheckCA(b.CertificatePEM()); err != nil {
		t.Fatal(err)
	}
}

// Certificates that the true authority signed, but with names that this
// package would never give.
func TestOddNamesAreRefused(t *testing.T) {
	a, other := testCluster(t), testCluster(t)
	node := testIdentity(t, a, RoleNode, "n1")
	u := func(s string) *url.URL {
		v, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	base := "faasd-sec://" + a.ClusterID()
	for name, c := range map[string]x509.Certificate{
		"no name":       {},
		"two names":     {URIs: []*url.URL{u(base + "/node/x"), u(base + "/coordinator/x")}},
		"and a host":    {URIs: []*url.URL{u(base + "/coordinator/x")}, DNSNames: []string{"x"}},
		"other cluster": {URIs: []*url.URL{u("faasd-sec://" + other.ClusterID() + "/coordinator/x")}},
		"other scheme":  {URIs: []*url.URL{u("https://" + a.ClusterID() + "/coordinator/x")}},
		"query":         {URIs: []*url.URL{u(base + "/coordinator/x?y")}},
		"user":          {URIs: []*url.URL{u("faasd-sec://u@" + a.ClusterID() + "/coordinator/x")}},
		"port":          {URIs: []*url.URL{u(base + ":1/coordinator/x")}},
		"escape":        {URIs: []*url.URL{u(base + "/coordinator/%78")}},
		"no id":         {URIs: []*url.URL{u(base + "/coordinator")}},
		"more path":     {URIs: []*url.URL{u(base + "/coordinator/x/y")}},
		"role case":     {URIs: []*url.URL{u(base + "/Coordinator/x")}},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			c.SerialNumber, c.Subject = big.NewInt(7), pkix.Name{CommonName: "odd"}
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
			der, err := x509.CreateCertificate(rand.Reader, &c, a.cert, key.Public(), a.key)
			if err != nil {
				t.Fatal(err)
			}
			evil := &tls.Config{InsecureSkipVerify: true,
				Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
			mustFail(t, ServerConfig(node, RoleCoordinator), evil, "certificate")
		})
	}
}

func TestServerOnlyCertificateIsNoClient(t *testing.T) {
	a := testCluster(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{Peer{a.cluster, RoleCoordinator, "x"}.URI()},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyChain(leaf, a.cert, time.Now()); err == nil {
		t.Fatal("accepted")
	}
	if _, err := VerifyChain(a.cert, a.cert, time.Now()); err == nil {
		t.Fatal("the authority itself was accepted as a process")
	}
}

func TestHandshakeEndsWithItsContext(t *testing.T) {
	a := testCluster(t)
	node := testIdentity(t, a, RoleNode, "n1")
	p, q := net.Pipe()
	defer p.Close()
	defer q.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := tls.Client(p, ClientConfig(node, RoleNode, AnyID)).HandshakeContext(ctx); err == nil {
		t.Fatal("handshake with nobody succeeded")
	}
}
