package coordinator

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*HostClient).connsCleaner"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

const imageDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// world is a coordinator with one function and nodes of the imagination, which
// serve over real sockets.
type world struct {
	t     testing.TB
	c     *Coordinator
	cfg   Config
	url   string
	http  *http.Client
	mesh  *fakeMesh
	nodes map[string]*fakeNode
	owner *sm2.PrivateKey
	keys  [2]*sm2.PrivateKey // the function's: signing, decryption
	state *memory

	manifests Manifests
	broker    *http.Client
	brokerURL string
	watching  Watching
	reg       prometheus.Registerer
	async     *Async
	cache     Cache
	log       *slog.Logger
	lead      Lead
	fn        store.Function
	rev       sealed.Digest
}

// newWorld starts a coordinator and n nodes, node-1 to node-n, each of them
// willing.
func newWorld(t testing.TB, n int, change ...func(*world)) *world {
	t.Helper()
	w := &world{t: t, cfg: DefaultConfig(), nodes: map[string]*fakeNode{}, log: slog.New(slog.DiscardHandler), state: &memory{functions: map[api.FunctionName]*store.Function{}}}
	w.cfg.AnyOwner, w.cfg.QueueTimeout, w.cfg.StartTimeout = true, 2*time.Second, time.Second
	var err error
	for _, k := range []**sm2.PrivateKey{&w.owner, &w.keys[0], &w.keys[1]} {
		if *k, err = sm2.GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	w.mesh = &fakeMesh{changed: make(chan struct{}), view: &api.ClusterView{Version: 1}}
	for i := range n {
		w.addNode(fmt.Sprintf("node-%d", i+1))
	}
	w.deploy(1)
	w.cache = w.state
	for _, f := range change {
		f(w)
	}
	life, end := context.WithCancel(context.Background())
	w.c, err = New(life, w.cfg, Deps{
		Mesh: w.mesh, Store: w.state, Cache: w.cache, Nodes: plain{}, Others: plain{}, Log: w.log, Lead: w.lead,
		Broker: w.broker, BrokerURL: w.brokerURL, Manifests: w.manifests, Watching: w.watching, Async: w.async, Registerer: w.reg,
		Auth: reqauth.NewVerifier(time.Now), Images: w.state, Registry: func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(204) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &fasthttp.Server{Handler: w.c.Gateway(), ErrorHandler: w.c.HandleError, ConnState: w.c.Replied, StreamRequestBody: true, MaxRequestBodySize: 8 << 10, ReadBufferSize: 16 << 10,
		CloseOnShutdown: true, DisablePreParseMultipartForm: true, Logger: silent{}, ReadTimeout: 5 * time.Second}
	go s.Serve(ln)
	tr := &http.Transport{}
	w.url, w.http = "http://"+ln.Addr().String(), &http.Client{Transport: tr}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.ShutdownWithContext(ctx); err != nil {
			t.Errorf("gateway: %v", err)
		}
		_ = ln.Close() // where the server had not taken it on yet
		end()
		w.c.Close()
		for _, n := range w.nodes {
			n.server.Close()
		}
	})
	return w
}

type silent struct{}

func (silent) Printf(string, ...any) {}

type plain struct{}

func (plain) DialNode(ctx context.Context, m api.NodeMeta) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", m.Addr)
}

// fakeMesh publishes what a test sets.
type fakeMesh struct {
	mu       sync.Mutex
	view     *api.ClusterView
	changed  chan struct{}
	observed []api.NodeLoad
}

func (m *fakeMesh) Snapshot() *api.ClusterView { m.mu.Lock(); defer m.mu.Unlock(); return m.view }

func (m *fakeMesh) Changed(version uint64) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.view.Version > version {
		c := make(chan struct{})
		close(c)
		return c
	}
	return m.changed
}

func (m *fakeMesh) Observe(l api.NodeLoad) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.observed = append(m.observed, l)
	return true
}

// set changes one node's view and publishes it.
func (m *fakeMesh) set(id string, f func(*api.NodeView)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := &api.ClusterView{Version: m.view.Version + 1, Nodes: append([]api.NodeView(nil), m.view.Nodes...)}
	for i := range next.Nodes {
		if next.Nodes[i].Meta.ID == id {
			f(&next.Nodes[i])
		}
	}
	m.view = next
	close(m.changed)
	m.changed = make(chan struct{})
}

// memory is a store, its cache and a registry that has everything but "none".
type memory struct {
	mu        sync.Mutex
	functions map[api.FunctionName]*store.Function
	past      map[api.FunctionName][]*store.Function
	version   int64
}

func (m *memory) PutFunction(_ context.Context, f store.Function, expected int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.functions[f.Name]; old != nil && old.Version != expected || old == nil && expected != store.Absent {
		return 0, api.Errorf(api.CodeConflict, "changed meanwhile")
	}
	m.version++
	f.Version = m.version
	m.functions[f.Name] = &f
	return m.version, nil
}

func (m *memory) GetFunction(_ context.Context, name api.FunctionName) (*store.Function, error) {
	if f := m.Get(name); f != nil {
		return f, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "no function")
}

func (m *memory) DeleteFunction(_ context.Context, name api.FunctionName, _ int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.functions, name)
	m.version++
	return m.version, nil
}

func (m *memory) Get(name api.FunctionName) *store.Function {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.functions[name]
}

func (m *memory) Snapshot() *store.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &store.Snapshot{Functions: map[api.FunctionName]*store.Function{}, Version: m.version}
	for n, f := range m.functions {
		s.Functions[n] = f
	}
	return s
}

func (m *memory) Wait(context.Context, int64) error { return nil }

func (m *memory) HasManifest(_ context.Context, repo, _ string) (bool, error) {
	return repo != "none", nil
}
func (m *memory) HasBlob(_ context.Context, repo, _ string) (bool, error) { return repo != "none", nil }

// fakeNode is a node's API as the coordinator meets it.
type fakeNode struct {
	server *http.Server
	invoke atomic.Pointer[http.HandlerFunc]
	admit  atomic.Pointer[http.HandlerFunc]
	put    atomic.Pointer[http.HandlerFunc]
	other  atomic.Pointer[http.HandlerFunc]

	offered, told, admitted atomic.Int64
	retired                 atomic.Int64
}

func (n *fakeNode) on(p *atomic.Pointer[http.HandlerFunc], h http.HandlerFunc) { p.Store(&h) }

func (w *world) addNode(id string) *fakeNode {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	n := &fakeNode{}
	n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", api.ContentTypeSealed)
		rw.Header().Set(api.HeaderServedBy, id)
		rw.Header().Set(api.HeaderStart, "warm")
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		rw.Write(b)
	})
	n.on(&n.admit, func(rw http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(rw).Encode(api.Ticket{Ticket: "t-" + id, Expires: time.Now().Add(time.Minute).UnixMilli()})
	})
	n.on(&n.put, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(204) })
	n.server = &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, api.NodePathInvoke):
			n.offered.Add(1)
			(*n.invoke.Load())(rw, r)
		case strings.HasPrefix(r.URL.Path, api.NodePathAdmit):
			n.admitted.Add(1)
			(*n.admit.Load())(rw, r)
		case strings.HasPrefix(r.URL.Path, api.NodePathRevisions):
			n.told.Add(1)
			(*n.put.Load())(rw, r)
		case strings.HasPrefix(r.URL.Path, api.NodePathFunctions):
			n.retired.Add(1)
			rw.WriteHeader(204)
		case r.URL.Path == api.NodePathSandboxes:
			rw.Write([]byte("[]"))
		case n.other.Load() != nil:
			(*n.other.Load())(rw, r)
		default:
			rw.WriteHeader(404)
		}
	})}
	go n.server.Serve(ln)
	w.nodes[id] = n
	lent := api.Resources{CPU: 4000, Memory: 4 << 30, PIDs: 1000}
	w.mesh.view.Nodes = append(w.mesh.view.Nodes, api.NodeView{
		Meta: api.NodeMeta{ID: id, Addr: ln.Addr().String(), Roles: []string{api.RoleNode}, Arch: "amd64", Tier: "node-key", Capacity: lent},
		Load: api.NodeLoad{Node: id, Epoch: 1, Seq: 1, Free: lent},
	})
	return n
}

// refuses answers as a node that did not pass a byte on.
func refuses(code api.Code) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		p := api.ProblemOf(&api.Error{Code: code, Message: "the node says no", Remedy: "do this"}, "")
		rw.Header().Set("Content-Type", api.ContentTypeProblem)
		rw.Header().Set(api.HeaderRefused, string(code))
		rw.WriteHeader(p.Status)
		json.NewEncoder(rw).Encode(p)
	}
}

// breaks takes the request and hangs up.
func breaks(_ http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

func (w *world) point(k *sm2.PrivateKey) sealed.PublicKey {
	w.t.Helper()
	p, err := sealed.PublicKeyOf(k.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// describe signs a descriptor of f.ns as owner.
func (w *world) describe(owner *sm2.PrivateKey, seq uint64, change ...func(*sealed.Descriptor)) ([]byte, sealed.Digest) {
	w.t.Helper()
	now := uint64(time.Now().Unix())
	d := &sealed.Descriptor{
		Name: "f", Namespace: "ns", Sequence: seq, Issued: now,
		Config: sealed.Config{Image: imageDigest, Mode: "http", Upstream: "unix", ReadMS: 1000, WriteMS: 1000, ExecMS: 1000,
			Resources: sealed.Resources{CPUMillis: 400, MemoryBytes: 64 << 20, PIDs: 32, TmpBytes: 1 << 20},
			Policy:    sealed.Policy{AnyCaller: true, Attestation: []string{"node-key"}}},
		SigningKey: w.point(w.keys[0]), Decryption: []sealed.DecryptionKey{{Key: w.point(w.keys[1]), NotBefore: now - 60, NotAfter: now + 3600}},
		Suites: []uint16{sealed.SuiteSM}, ImageRef: "img",
	}
	for _, f := range change {
		f(d)
	}
	b, err := d.Sign(rand.Reader, owner)
	if err != nil {
		w.t.Fatal(err)
	}
	rev, err := d.Revision()
	if err != nil {
		w.t.Fatal(err)
	}
	return b, rev
}

// deploy puts f.ns into the store.
func (w *world) deploy(seq uint64, change ...func(*sealed.Descriptor)) {
	w.t.Helper()
	b, rev := w.describe(w.owner, seq, change...)
	w.rev = rev
	w.fn = store.Function{Name: "f.ns", Revision: rev.String(), Owner: w.point(w.owner).Fingerprint().String(), Sequence: seq,
		Descriptor: b, ImageRef: "img", ImageDigest: imageDigest}
	w.state.mu.Lock()
	defer w.state.mu.Unlock()
	w.state.version++
	w.fn.Version = w.state.version
	f := w.fn
	w.state.functions["f.ns"] = &f
}

// message is a sealed request to f.ns.
func (w *world) message(size int, life time.Duration) []byte {
	w.t.Helper()
	now := time.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: w.point(w.keys[1]), Sender: w.owner,
		Context: w.rev, Name: "f.ns", NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute)})
	if err != nil {
		w.t.Fatal(err)
	}
	defer g.Release()
	b, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: now, Life: life}, sealed.RequestHead{Method: "POST"}, make([]byte, size))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// answer is what a caller gets.
type answer struct {
	status int
	header http.Header
	body   []byte
	code   api.Code
	err    error
}

func (w *world) send(msg []byte) answer {
	w.t.Helper()
	return w.do("POST", "/function/f.ns", api.ContentTypeSealed, msg)
}

func (w *world) do(method, path, contentType string, body []byte, header ...string) answer {
	w.t.Helper()
	req, err := http.NewRequest(method, w.url+path, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	var p api.Problem
	if resp.Header.Get("Content-Type") == api.ContentTypeProblem {
		a.err = errors.Join(a.err, json.Unmarshal(a.body, &p))
		a.code = p.Code
	}
	return a
}

// rest checks that nothing is under way any more.
func (w *world) rest() {
	w.t.Helper()
	w.eventually("nothing is in flight, nobody waits", func() bool {
		busy := w.c.queue.count.Load()
		for id := range w.nodes {
			busy += int64(w.c.peers.inFlight(id))
		}
		return busy == 0
	})
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	w.t.Fatalf("not in time: %s", what)
}

// offered is how often nodes were offered an invocation, in all.
func (w *world) offered() (n int64) {
	for _, f := range w.nodes {
		n += f.offered.Load()
	}
	return n
}
