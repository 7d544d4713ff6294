// Package clienttest stands for a cluster in the tests of package client and of
// the command line: a gateway, a real key broker, and in place of nodes an agent
// in this process that opens with the keys the broker released. It runs no
// container and is for tests alone.
package clienttest

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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/registry"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// trusting believes any evidence, as these tests are not about it.
type trusting struct{}

func (trusting) Type() string { return "node-key" }

func (trusting) Verify(_ context.Context, _ []byte, _ api.Evidence) (attest.Claims, error) {
	return attest.Claims{Type: "node-key", NodeID: "n1"}, nil
}

// Cluster is a gateway, a real key broker and a real registry, and an agent for
// whatever function was deployed last, all in this process. Fields may be changed
// between requests, not during one.
type Cluster struct {
	t    testing.TB
	auth *reqauth.Verifier
	reg  *registry.Registry

	URL    string // of the gateway
	Broker *keybroker.Broker
	// Handler is the function.
	Handler Handler
	// Intercept sees each request first, and answers it when it returns true.
	Intercept func(w http.ResponseWriter, r *http.Request) bool
	Logs      [][]byte          // frames of the function's log
	Blobs     map[string][]byte // what a deployment of Deployment pushed, by repository

	mu         sync.Mutex
	Record     *api.Revision // as it was put, nil for none
	Descriptor *sealed.Descriptor
	Revision   sealed.Digest
	Owner      sealed.Fingerprint
	Keys       *unseal.Release // as the broker released them
	Opener     *unseal.Opener  // with those keys
}

// Handler is a function: it returns the head of its reply, and what writes the
// body. An error of the latter breaks the reply off.
type Handler func(h sealed.RequestHead, body io.Reader) (sealed.ReplyHead, func(io.Writer) error)

// New starts a cluster that ends with the test.
func New(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{t: t, auth: reqauth.NewVerifier(time.Now), Blobs: make(map[string][]byte), Handler: Echo}
	id, _, err := keybroker.OpenIdentity(t.TempDir(), []byte("passphrase"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := attest.NewVerifiers(trusting{})
	if err != nil {
		t.Fatal(err)
	}
	c.Broker, err = keybroker.New(keybroker.Config{Identity: id, VaultDir: t.TempDir(), Verifiers: set, Random: rand.Reader,
		Now: time.Now, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := registry.DefaultConfig(t.TempDir(), slog.New(slog.DiscardHandler))
	cfg.Authorize = c.authorize
	if c.reg, err = registry.Open(cfg); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(srv.Close)
	c.URL = srv.URL
	return c
}

// Fail answers with a problem.
func Fail(w http.ResponseWriter, err error) {
	p := api.ProblemOf(err, "")
	w.Header().Set("Content-Type", api.ContentTypeProblem)
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		Fail(w, err)
		return
	}
	w.Header().Set("Content-Type", api.ContentTypeJSON)
	json.NewEncoder(w).Encode(v)
}

func (c *Cluster) verify(r *http.Request, body []byte) (reqauth.Caller, error) {
	return c.auth.Verify(reqauth.Request{Method: r.Method, Target: r.RequestURI, Authorization: r.Header.Get("Authorization"), Body: reqauth.Bytes(body)})
}

func (c *Cluster) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	intercept := c.Intercept
	c.mu.Unlock()
	if intercept != nil && intercept(w, r) {
		return
	}
	switch p := r.URL.Path; {
	case p == api.GatewayPathBroker:
		answer(w, c.Broker.Info(), nil)
	case p == api.GatewayPathDeposits:
		d, err := c.Broker.Deposit(r.Body)
		answer(w, d, err)
	case strings.HasPrefix(p, api.GatewayPathDeposits+"/"):
		err := c.Broker.Remove(api.FunctionName(strings.TrimPrefix(p, api.GatewayPathDeposits+"/")), reqauth.Request{Method: r.Method,
			Target: r.RequestURI, Authorization: r.Header.Get("Authorization")})
		if err != nil {
			Fail(w, err)
			return
		}
		w.WriteHeader(204)
	case strings.HasSuffix(p, "/logs"):
		if _, err := c.verify(r, nil); err != nil {
			Fail(w, err)
			return
		}
		for _, f := range c.Logs {
			api.WriteFrame(w, f)
		}
	case strings.HasPrefix(p, api.GatewayPathFunctions+"/"):
		c.function(w, r)
	case p == api.GatewayPathFunctions:
		answer(w, c.list(), nil)
	case p == api.GatewayPathNodes:
		view := api.NodeView{Meta: api.NodeMeta{ID: "n1", Roles: []string{api.RoleNode}, Arch: "amd64", Tier: "node-key",
			Capacity: api.Resources{CPU: 2000, Memory: 4 << 30}}, Load: api.NodeLoad{Node: "n1", Epoch: 1, Free: api.Resources{CPU: 1500, Memory: 3 << 30}}}
		if r.URL.Query().Has(api.QueryDetail) {
			answer(w, api.NodeList{Nodes: []api.NodeDetail{{View: view, Status: &api.NodeStatus{Node: "n1"}}}}, nil)
			return
		}
		answer(w, []api.NodeView{view}, nil)
	case strings.HasPrefix(p, api.GatewayPathRegistry):
		c.reg.ServeHTTP(w, r)
	case strings.HasPrefix(p, api.GatewayPathInvoke):
		c.Invoke(w, r)
	default:
		Fail(w, &api.Error{Code: api.CodeNotFound, Message: "no such path"})
	}
}

// authorize is the coordinator's rule for the registry.
func (c *Cluster) authorize(r *http.Request, _ registry.Access) error {
	body := reqauth.Stream()
	if reqauth.RegistryUpload(r) {
		body = reqauth.Unsigned()
	}
	who, err := c.auth.Verify(reqauth.Request{Method: r.Method, Target: r.RequestURI, Authorization: r.Header.Get("Authorization"), Body: body})
	if err == nil {
		r.Body = io.NopCloser(who.Reader(r.Body))
	}
	return err
}

func (c *Cluster) list() []api.FunctionStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Record == nil {
		return nil
	}
	return []api.FunctionStatus{c.status()}
}

func (c *Cluster) status() api.FunctionStatus {
	return api.FunctionStatus{Name: api.FunctionName(c.Descriptor.FullName()), Sealed: true, Descriptor: c.Record.Descriptor,
		Revision: c.Revision.String(), Owner: c.Owner.String(), Image: c.Record.ImageRef + "@" + c.Descriptor.Config.Image, Mode: string(c.Descriptor.Config.Mode)}
}

func (c *Cluster) function(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r.Method {
	case http.MethodGet:
		if c.Record == nil {
			Fail(w, &api.Error{Code: api.CodeNotFound, Message: "no such function"})
			return
		}
		answer(w, c.status(), nil)
	case http.MethodPut:
		body, _ := io.ReadAll(r.Body)
		who, err := c.verify(r, body)
		if err != nil {
			Fail(w, err)
			return
		}
		var rev api.Revision
		if err := json.Unmarshal(body, &rev); err != nil {
			Fail(w, err)
			return
		}
		answer(w, struct{}{}, c.adopt(rev, who.Fingerprint))
	case http.MethodDelete:
		who, err := c.verify(r, nil)
		switch {
		case err != nil:
			Fail(w, err)
		case c.Record == nil:
			Fail(w, &api.Error{Code: api.CodeNotFound})
		case who.Fingerprint != c.Owner:
			Fail(w, &api.Error{Code: api.CodeForbidden})
		default:
			c.Record = nil
			w.WriteHeader(204)
		}
	}
}

// Record is an Intercept that keeps a copy of every request, header and body.
func Record(into *bytes.Buffer) func(http.ResponseWriter, *http.Request) bool {
	var mu sync.Mutex
	return func(_ http.ResponseWriter, r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(into, "%s %s\n", r.Method, r.RequestURI)
		r.Header.Write(into)
		into.Write(body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		return false
	}
}
