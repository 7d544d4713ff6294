package daemon_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/keybroker/daemon"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/samehost"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// fasthttp keeps two sleepers of its own for a while after a server ended.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// net is a cluster's authority and a broker that listens.
type network struct {
	t    *testing.T
	ca   *pki.Authority
	d    *daemon.Daemon
	dial func(who *pki.Identity) func(context.Context, string, string) (net.Conn, error) // nil for TCP
}

func (n *network) identity(ca *pki.Authority, role pki.Role, id string) *pki.Identity {
	n.t.Helper()
	key, cert, err := ca.Issue(role, id, time.Hour)
	if err != nil {
		n.t.Fatal(err)
	}
	i, err := pki.NewIdentity(key, cert, ca.CertificatePEM())
	if err != nil {
		n.t.Fatal(err)
	}
	return i
}

func start(t *testing.T, options ...func(*daemon.Config)) *network {
	t.Helper()
	n := &network{t: t}
	var err error
	if n.ca, err = pki.NewCluster(filepath.Join(t.TempDir(), "ca")); err != nil {
		t.Fatal(err)
	}
	cfg := daemon.Config{Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", StateDir: t.TempDir(),
		TLS: n.identity(n.ca, pki.RoleKeyBroker, "kb"), Passphrase: []byte("passphrase"), Log: slog.New(slog.DiscardHandler)}
	for _, o := range options {
		o(&cfg)
	}
	if n.d, err = daemon.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the daemon does not end")
		}
	})
	return n
}

// call makes one request as a member of the cluster.
func (n *network) call(who *pki.Identity, method, path, typ, auth string, body []byte) (int, []byte, error) {
	n.t.Helper()
	tr := &http.Transport{TLSClientConfig: pki.ClientConfig(who, pki.RoleKeyBroker, pki.AnyID)}
	if n.dial != nil {
		tr.DialTLSContext = n.dial(who)
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(n.t.Context(), method, "https://"+n.d.Addr()+path, bytes.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	if typ != "" {
		req.Header.Set("Content-Type", typ)
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	res, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, b, err
}

// deposit makes a function of owner's and its sealed deposit.
func (n *network) deposit(owner *unseal.Identity) (*sealed.Descriptor, []byte) {
	n.t.Helper()
	fn, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		n.t.Fatal(err)
	}
	broker, err := sealed.ParsePublicKeyText(n.d.Info().Signing)
	if err != nil {
		n.t.Fatal(err)
	}
	to, err := sealed.ParsePublicKeyText(n.d.Info().Decryption)
	if err != nil {
		n.t.Fatal(err)
	}
	now := time.Now()
	d := &sealed.Descriptor{Name: "hello", Namespace: "openfaas-fn", Sequence: 1, Issued: uint64(now.Unix()),
		Config: sealed.Config{Image: "sha256:" + strings.Repeat("ab", 32), Mode: sealed.ModeHTTP, Upstream: "unix",
			Policy: sealed.Policy{AnyCaller: true, Attestation: []string{attest.TypeNodeKey}, Broker: broker}},
		SigningKey: fn.SigningKey(), Suites: []uint16{sealed.SuiteSM},
		Decryption: []sealed.DecryptionKey{{Key: fn.DecryptionKey(), NotBefore: 1, NotAfter: uint64(now.Add(time.Hour).Unix())}}}
	signed, err := d.Sign(rand.Reader, owner.Signer())
	if err != nil {
		n.t.Fatal(err)
	}
	body, err := unseal.EncodeDeposit(&unseal.Deposit{Descriptor: signed, Signing: fn.Signer().Scalar(), Decryption: [][]byte{fn.Decrypter().Scalar()}})
	if err != nil {
		n.t.Fatal(err)
	}
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleDeposit, Recipient: to, Sender: owner.Signer(), Name: d.FullName(),
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute)})
	if err != nil {
		n.t.Fatal(err)
	}
	defer g.Release()
	msg, err := g.Append(nil, sealed.MessageParams{Issued: now}, body)
	if err != nil {
		n.t.Fatal(err)
	}
	return d, msg
}

// proof is a statement of a new sandbox with evidence that signer made.
func (n *network) proof(signer *pki.Identity) api.AttestRequest {
	n.t.Helper()
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		n.t.Fatal(err)
	}
	pub := k.PublicKey()
	st, err := cbor.Marshal(api.Statement{Ephemeral: pub[:], Nonce: make([]byte, 16), IssuedAtMs: time.Now().UnixMilli()})
	if err != nil {
		n.t.Fatal(err)
	}
	c := &attest.NodeKeyCollector{NodeID: signer.Peer().ID, AgentDigest: sm3.Sum([]byte("agent")), Random: rand.Reader, Now: time.Now,
		Credentials: func() (crypto.Signer, [][]byte, error) { s, chain := signer.Signer(); return s, chain, nil }}
	ev, err := c.Collect(n.t.Context(), st)
	if err != nil {
		n.t.Fatal(err)
	}
	return api.AttestRequest{Statement: st, Evidence: []api.Evidence{ev}}
}

// attest shows a proof over who's connection.
func (n *network) attest(p api.AttestRequest, who *pki.Identity) (int, []byte) {
	n.t.Helper()
	body, err := json.Marshal(p)
	if err != nil {
		n.t.Fatal(err)
	}
	status, b, err := n.call(who, "POST", api.BrokerPathAttest, api.ContentTypeJSON, "", body)
	if err != nil {
		n.t.Fatal(err)
	}
	return status, b
}

// release asks for keys with evidence that signer made, over who's connection.
func (n *network) release(d *sealed.Descriptor, who, signer *pki.Identity) (int, []byte) {
	n.t.Helper()
	return n.releaseWith(n.proof(signer), d, who)
}

func (n *network) releaseWith(p api.AttestRequest, d *sealed.Descriptor, who *pki.Identity) (int, []byte) {
	n.t.Helper()
	rev, err := d.Revision()
	if err != nil {
		n.t.Fatal(err)
	}
	body, err := json.Marshal(api.ReleaseRequest{Function: d.FullName(), Revision: rev.String(), Statement: p.Statement, Evidence: p.Evidence})
	if err != nil {
		n.t.Fatal(err)
	}
	status, b, err := n.call(who, "POST", api.BrokerPathRelease, api.ContentTypeJSON, "", body)
	if err != nil {
		n.t.Fatal(err)
	}
	return status, b
}

func wantProblem(t *testing.T, status int, body []byte, code api.Code) {
	t.Helper()
	if got := api.ParseProblem(status, body); got.Code != code {
		t.Errorf("status %d, code %q, want %q: %s", status, got.Code, code, body)
	}
}

func TestDepositReleaseRemovalOverMutualTLS(t *testing.T) {
	n := start(t)
	owner, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	coordinator, node, other := n.identity(n.ca, pki.RoleCoordinator, "c1"), n.identity(n.ca, pki.RoleNode, "n1"), n.identity(n.ca, pki.RoleNode, "n2")
	foreign, err := pki.NewCluster(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}

	status, b, err := n.call(node, "GET", api.BrokerPathInfo, "", "", nil)
	var info api.BrokerInfo
	if err != nil || status != 200 || json.Unmarshal(b, &info) != nil || info.Signing != n.d.Info().Signing {
		t.Fatalf("info: %d %s %v", status, b, err)
	}
	d, msg := n.deposit(owner)
	status, b, _ = n.call(node, "POST", api.BrokerPathDeposits, api.ContentTypeSealed, "", msg)
	wantProblem(t, status, b, api.CodeForbidden)
	status, b, _ = n.call(coordinator, "POST", api.BrokerPathDeposits, "text/plain", "", msg)
	wantProblem(t, status, b, api.CodeMediaType)
	if status, b, err = n.call(coordinator, "POST", api.BrokerPathDeposits, api.ContentTypeSealed, "", msg); err != nil || status != 200 {
		t.Fatalf("deposit: %d %s %v", status, b, err)
	}

	if status, b = n.release(d, node, node); status != 200 {
		t.Fatalf("release: %d %s", status, b)
	}
	status, b = n.release(d, coordinator, node)
	wantProblem(t, status, b, api.CodeForbidden)
	status, b = n.release(d, node, other) // another node's evidence over our connection
	wantProblem(t, status, b, api.CodeKeyRefused)
	status, b = n.release(d, node, n.identity(foreign, pki.RoleNode, "n1"))
	wantProblem(t, status, b, api.CodeKeyRefused)
	status, b = n.release(d, node, n.identity(n.ca, pki.RoleCoordinator, "n1"))
	wantProblem(t, status, b, api.CodeKeyRefused)

	ahead := n.proof(node)
	if status, b = n.attest(ahead, node); status != 204 {
		t.Errorf("evidence handed in: %d %s", status, b)
	}
	status, b = n.releaseWith(ahead, d, other) // it is no other node's by that
	wantProblem(t, status, b, api.CodeKeyRefused)
	if status, b = n.releaseWith(ahead, d, node); status != 200 {
		t.Errorf("release of what was handed in: %d %s", status, b)
	}
	status, b = n.attest(n.proof(node), coordinator)
	wantProblem(t, status, b, api.CodeForbidden)
	status, b = n.attest(n.proof(other), node)
	wantProblem(t, status, b, api.CodeKeyRefused)
	status, b = n.attest(n.proof(n.identity(foreign, pki.RoleNode, "n1")), node)
	wantProblem(t, status, b, api.CodeKeyRefused)
	if _, _, err := n.call(n.identity(foreign, pki.RoleCoordinator, "c1"), "GET", api.BrokerPathInfo, "", "", nil); err == nil {
		t.Error("another cluster's member was served")
	}

	const path = api.BrokerPathDeposits + "/hello.openfaas-fn"
	s := &reqauth.Signer{Key: owner.Signer(), Random: rand.Reader, Now: time.Now}
	auth, err := s.Sign("DELETE", path, sm3.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	status, b, _ = n.call(coordinator, "DELETE", path, "", "", nil)
	wantProblem(t, status, b, api.CodeUnauthorized)
	status, b, _ = n.call(coordinator, "DELETE", path+"?x=1", "", auth, nil)
	wantProblem(t, status, b, api.CodeUnauthorized)
	status, b, _ = n.call(node, "DELETE", path, "", auth, nil)
	wantProblem(t, status, b, api.CodeForbidden)
	if status, b, err = n.call(coordinator, "DELETE", path, "", auth, nil); err != nil || status != 204 {
		t.Fatalf("removal: %d %s %v", status, b, err)
	}
	status, b = n.release(d, node, node)
	wantProblem(t, status, b, api.CodeNotFound)
	status, b, _ = n.call(node, "PUT", api.BrokerPathRelease, "", "", nil)
	wantProblem(t, status, b, api.CodeMethod)
	status, b, _ = n.call(node, "GET", "/else", "", "", nil)
	wantProblem(t, status, b, api.CodeNotFound)
}

// Over the socket for this machine's nodes there is no TLS after the handshake,
// and the same is decided.
func TestReleaseOverTheLocalSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	n := start(t, func(c *daemon.Config) { c.LocalSocket = socket })
	owner, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d, msg := n.deposit(owner)
	coordinator, node, other := n.identity(n.ca, pki.RoleCoordinator, "c1"), n.identity(n.ca, pki.RoleNode, "n1"), n.identity(n.ca, pki.RoleNode, "n2")
	if status, b, err := n.call(coordinator, "POST", api.BrokerPathDeposits, api.ContentTypeSealed, "", msg); err != nil || status != 200 {
		t.Fatalf("deposit: %d %s %v", status, b, err)
	}
	n.dial = func(who *pki.Identity) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			return samehost.Dial(ctx, socket, pki.ClientConfig(who, pki.RoleKeyBroker, pki.AnyID))
		}
	}
	p := n.proof(node)
	if status, b := n.attest(p, node); status != 204 {
		t.Errorf("evidence: %d %s", status, b)
	}
	if status, b := n.releaseWith(p, d, node); status != 200 {
		t.Errorf("release: %d %s", status, b)
	}
	status, b := n.releaseWith(n.proof(node), d, other)
	wantProblem(t, status, b, api.CodeKeyRefused)
	if _, _, err := n.call(coordinator, "GET", api.BrokerPathInfo, "", "", nil); err == nil {
		t.Error("a coordinator was served over the nodes' socket")
	}
	foreign, err := pki.NewCluster(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.call(n.identity(foreign, pki.RoleNode, "n1"), "GET", api.BrokerPathInfo, "", "", nil); err == nil {
		t.Error("another cluster's node was served")
	}
}

func TestHealthAndMetrics(t *testing.T) {
	n := start(t)
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": "go_goroutines"} {
		res, err := http.Get("http://" + n.d.MetricsAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || !strings.Contains(string(b), want) {
			t.Errorf("%s: %d %.80s", path, res.StatusCode, b)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestTheCertificateMustBeABrokers(t *testing.T) {
	n := start(t)
	_, err := daemon.New(daemon.Config{Listen: "127.0.0.1:0", StateDir: t.TempDir(), TLS: n.identity(n.ca, pki.RoleNode, "n1"),
		Passphrase: []byte("passphrase"), Log: slog.New(slog.DiscardHandler)})
	if api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("error %v", err)
	}
}
