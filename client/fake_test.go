package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

const fn = api.FunctionName("echo.openfaas-fn")

// trusting believes any evidence, as these tests are not about it.
type trusting struct{}

func (trusting) Type() string { return "node-key" }
func (trusting) Verify(_ context.Context, _ []byte, _ api.Evidence) (attest.Claims, error) {
	return attest.Claims{Type: "node-key", NodeID: "n1"}, nil
}

// cluster is a gateway, a real key broker, and an agent for whatever function was
// deployed last, all in this process.
type cluster struct {
	t       *testing.T
	url     string
	broker  *keybroker.Broker
	auth    *reqauth.Verifier
	handler func(w io.Writer, h sealed.RequestHead, body io.Reader) (sealed.ReplyHead, func(io.Writer) error)

	mu        sync.Mutex
	revision  *api.Revision
	opener    *unseal.Opener
	desc      *sealed.Descriptor
	rev       sealed.Digest
	keys      *unseal.Release
	owner     sealed.Fingerprint
	blobs     map[string][]byte
	intercept func(w http.ResponseWriter, r *http.Request) bool
	invoked   int
	logs      [][]byte
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, auth: reqauth.NewVerifier(time.Now), blobs: make(map[string][]byte)}
	id, _, err := keybroker.OpenIdentity(t.TempDir(), []byte("passphrase"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := attest.NewVerifiers(trusting{})
	if err != nil {
		t.Fatal(err)
	}
	c.broker, err = keybroker.New(keybroker.Config{Identity: id, VaultDir: t.TempDir(), Verifiers: set, Random: rand.Reader,
		Now: time.Now, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(srv.Close)
	c.url = srv.URL
	return c
}

func fail(w http.ResponseWriter, err error) {
	p := api.ProblemOf(err, "")
	w.Header().Set("Content-Type", api.ContentTypeProblem)
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", api.ContentTypeJSON)
	json.NewEncoder(w).Encode(v)
}

func (c *cluster) verify(r *http.Request, body []byte) (reqauth.Caller, error) {
	return c.auth.Verify(reqauth.Request{Method: r.Method, Target: r.RequestURI, Authorization: r.Header.Get("Authorization"), Body: reqauth.Bytes(body)})
}

func (c *cluster) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	intercept := c.intercept
	c.mu.Unlock()
	if intercept != nil && intercept(w, r) {
		return
	}
	switch p := r.URL.Path; {
	case p == api.GatewayPathBroker:
		answer(w, c.broker.Info(), nil)
	case p == api.GatewayPathDeposits:
		d, err := c.broker.Deposit(r.Body)
		answer(w, d, err)
	case strings.HasPrefix(p, api.GatewayPathDeposits+"/"):
		err := c.broker.Remove(api.FunctionName(strings.TrimPrefix(p, api.GatewayPathDeposits+"/")), reqauth.Request{Method: r.Method,
			Target: r.RequestURI, Authorization: r.Header.Get("Authorization")})
		if err != nil {
			fail(w, err)
			return
		}
		w.WriteHeader(204)
	case strings.HasSuffix(p, "/logs"):
		if _, err := c.verify(r, nil); err != nil {
			fail(w, err)
			return
		}
		for _, f := range c.logs {
			api.WriteFrame(w, f)
		}
	case strings.HasPrefix(p, api.GatewayPathFunctions+"/"):
		c.function(w, r)
	case strings.HasPrefix(p, api.GatewayPathInvoke):
		c.invoke(w, r)
	default:
		fail(w, &api.Error{Code: api.CodeNotFound, Message: "no such path"})
	}
}

func (c *cluster) function(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r.Method {
	case http.MethodGet:
		if c.revision == nil {
			fail(w, &api.Error{Code: api.CodeNotFound, Message: "no such function"})
			return
		}
		answer(w, api.FunctionStatus{Name: fn, Sealed: true, Descriptor: c.revision.Descriptor}, nil)
	case http.MethodPut:
		body, _ := io.ReadAll(r.Body)
		who, err := c.verify(r, body)
		if err != nil {
			fail(w, err)
			return
		}
		var rev api.Revision
		if err := json.Unmarshal(body, &rev); err != nil {
			fail(w, err)
			return
		}
		answer(w, struct{}{}, c.adopt(rev, who.Fingerprint))
	case http.MethodDelete:
		who, err := c.verify(r, nil)
		switch {
		case err != nil:
			fail(w, err)
		case c.revision == nil:
			fail(w, &api.Error{Code: api.CodeNotFound})
		case who.Fingerprint != c.owner:
			fail(w, &api.Error{Code: api.CodeForbidden})
		default:
			c.revision = nil
			w.WriteHeader(204)
		}
	}
}

// adopt does what coordinator, node and agent do with a new revision.
func (c *cluster) adopt(rev api.Revision, owner sealed.Fingerprint) error {
	signed, err := sealed.ParseDescriptor(rev.Descriptor)
	if err != nil {
		return err
	}
	if c.desc, err = signed.Verify(owner); err != nil {
		return err
	}
	if c.rev, err = c.desc.Revision(); err != nil {
		return err
	}
	if c.keys, err = c.release(); err != nil {
		return err
	}
	if err := unseal.MatchDescriptor(c.desc, c.keys.Signing, c.keys.Decryption); err != nil {
		return err
	}
	list := make([]unseal.Key, len(c.keys.Decryption))
	for i, s := range c.keys.Decryption {
		k, err := unseal.KeyFromScalar(s)
		if err != nil {
			return err
		}
		list[i] = unseal.Key{Decrypter: k}
	}
	c.opener, err = newOpener(list...)
	c.revision, c.owner = &rev, owner
	return err
}

func newOpener(list ...unseal.Key) (*unseal.Opener, error) {
	keys, err := unseal.NewKeySet(list...)
	if err != nil {
		return nil, err
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{})
	if err != nil {
		return nil, err
	}
	return unseal.NewOpener(unseal.Config{Keys: keys, Replay: replay})
}

// release asks the broker as a sandbox would.
func (c *cluster) release() (*unseal.Release, error) {
	eph, err := unseal.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	pub := eph.PublicKey()
	st, err := cbor.Marshal(api.Statement{Function: c.desc.FullName(), Revision: c.rev[:], Ephemeral: pub[:], Nonce: make([]byte, 16), IssuedAtMs: time.Now().UnixMilli()})
	if err != nil {
		return nil, err
	}
	reply, err := c.broker.Release(c.t.Context(), "n1", api.ReleaseRequest{Statement: st, Evidence: []api.Evidence{{Type: "node-key"}}})
	if err != nil {
		return nil, err
	}
	o, err := newOpener(unseal.Key{Decrypter: eph})
	if err != nil {
		return nil, err
	}
	m, err := o.Open(bytes.NewReader(reply.Sealed), unseal.Expect{Role: sealed.RoleRelease, Name: c.desc.FullName(), Context: c.rev,
		Senders: unseal.Only(c.desc.Config.Policy.Broker)})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	b, err := m.ReadAll(4096)
	if err != nil {
		return nil, err
	}
	return unseal.DecodeRelease(b)
}

// invoke is the agent: it opens, lets handler answer, and seals the reply.
func (c *cluster) invoke(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	opener, desc, rev, keys, handler := c.opener, c.desc, c.rev, c.keys, c.handler
	c.invoked++
	c.mu.Unlock()
	refuse := func(err error) {
		fail(w, &api.Error{Code: api.Code(sealed.CodeOf(err)), Message: err.Error()})
	}
	m, err := opener.Open(r.Body, unseal.Expect{Role: sealed.RoleRequest, Name: desc.FullName(), Context: rev, Senders: &desc.Config.Policy})
	if err != nil {
		refuse(err)
		return
	}
	defer m.Close()
	body, err := m.Body(func() (io.ReadWriteSeeker, error) { return os.CreateTemp(c.t.TempDir(), "spool") })
	if err != nil {
		refuse(err)
		return
	}
	head, err := m.RequestHead()
	if err != nil {
		refuse(err)
		return
	}
	sign, err := unseal.KeyFromScalar(keys.Signing)
	if err != nil {
		refuse(err)
		return
	}
	now := time.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleReply, Recipient: m.Grant.ReplyKey, Sender: sign, Context: rev,
		Name: desc.FullName(), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(10 * time.Minute)})
	if err != nil {
		refuse(err)
		return
	}
	defer g.Release()
	w.Header().Set("Content-Type", api.ContentTypeSealed)
	w.Header().Set(api.HeaderServedBy, "n1")
	w.Header().Set(api.HeaderStart, "warm")
	w.Header().Set(api.HeaderDuration, "0.001")
	http.NewResponseController(w).EnableFullDuplex()
	reply, write := handler(w, head, body)
	out, err := g.SealReply(flusher{w}, sealed.MessageParams{ID: m.Header.ID, Link: m.Link(), Issued: now}, reply)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer out.Abort()
	if err := write(flushing{out}); err != nil {
		return // without FINAL
	}
	if err := out.Close(); err != nil {
		c.t.Log(err)
	}
}

// flusher sends every write at once.
type flusher struct{ http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	f.ResponseWriter.(http.Flusher).Flush()
	return n, err
}

// flushing makes every write a record.
type flushing struct{ w *sealed.Writer }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, f.w.Flush()
}

// echo answers with head and body of the request.
func echo(_ io.Writer, h sealed.RequestHead, body io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
	reply := sealed.ReplyHead{Status: 201, Header: []sealed.Field{{Name: "x-line", Value: fmt.Sprintf("%s %s?%s", h.Method, h.Path, h.Query)}}}
	for _, f := range h.Header {
		reply.Header = append(reply.Header, sealed.Field{Name: "echo-" + f.Name, Value: f.Value})
	}
	return reply, func(w io.Writer) error {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{body}, make([]byte, 32<<10))
		return err
	}
}

func identity(t *testing.T) *unseal.Identity {
	t.Helper()
	id, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (c *cluster) client(id *unseal.Identity, edit ...func(*client.Config)) *client.Client {
	c.t.Helper()
	cfg := client.Config{Gateway: c.url, Identity: id, Pins: new(client.Pins), Transport: client.NewTransport()}
	for _, e := range edit {
		e(&cfg)
	}
	cl, err := client.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

func firstUse(cfg *client.Config) { cfg.TrustOnFirstUse = true }

func (c *cluster) deployment(ring *client.Keyring, edit ...func(*client.Deployment)) client.Deployment {
	d := client.Deployment{Name: fn, ImageRef: "echo:latest", ImageDigest: "sha256:" + strings.Repeat("0a", 32), Mode: "http", Upstream: "unix",
		Resources: api.Resources{CPU: 500, Memory: 128 << 20, PIDs: 64}, AnyCaller: true, Attestation: []string{"node-key"}, Keys: ring,
		PushBundle: func(_ context.Context, repo string, f *os.File, size int64) (string, error) {
			b, err := io.ReadAll(f)
			digest := "sha256:" + strings.Repeat("0b", 32)
			c.blobs[repo] = b
			return digest, err
		}}
	for _, e := range edit {
		e(&d)
	}
	return d
}
