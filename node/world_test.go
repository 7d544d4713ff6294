package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*HostClient).connsCleaner"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

const imageDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// world is a node on a machine of the imagination. Its agents are goroutines
// that speak the real protocols over real sockets.
type world struct {
	t     testing.TB
	n     *Node
	fake  *runtimetest.Fake
	cfg   Config
	url   string
	http  *http.Client
	owner *sm2.PrivateKey
	keys  [3]*sm2.PrivateKey // the function's: signing, decryption; the broker's
	stop  func()
	sever func() // breaks all connections to the daemon

	delivered atomic.Int64                             // invocations that reached an agent
	connected atomic.Int64                             // connections to agents
	grants    sync.Map                                 // of who waits, as agents were told: string to true
	hello     func(api.FunctionName) error             // asked before an agent says ready; may wait
	work      func(http.ResponseWriter, *http.Request) // what agents do for an invocation; nil: they echo it
	openly    func(http.ResponseWriter, *http.Request) // what agents do for a plain request; nil: nothing
	released  atomic.Int64
	release   func(api.ReleaseRequest) error // what the broker does first
	attested  atomic.Int64
	attest    func(api.AttestRequest) error
	stillborn func() bool              // whether an agent ends at once
	cut       func(api.Control) bool   // asked for each frame to an agent: it drops it and its connection
	pressure  atomic.Pointer[Pressure] // nil: the kernel tells none
	measured  atomic.Int64             // how often the agent was
	log       slog.Handler             // of the daemon; nil drops all
	net, disk *fitter                  // nil: the node lends neither
	anomalies anomaly.Sink

	imagePolicy ImagePolicy
	machine     atomic.Pointer[api.Resources] // what it really has free; nil: enough
	diskFree    atomic.Int64
	kernel      atomic.Bool // it lacks something
	mesh        func(api.NodeLoad)
	watched     func(runtime.Runtime) runtime.Runtime
	watching    Watching
}

// newWorld starts a node with 2000 millicores, 2 GiB and 4096 pids.
func newWorld(t testing.TB, change ...func(*world)) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "nd") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, cfg: DefaultConfig(), hello: func(api.FunctionName) error { return nil }}
	w.cfg.ID, w.cfg.StateDir, w.cfg.RunDir, w.cfg.AgentPath = "node-1", dir+"/state", dir+"/run", "/proc/self/exe"
	w.cfg.Capacity = api.Resources{CPU: 2000, Memory: 2 << 30, PIDs: 4096}
	w.cfg.PoolMin, w.cfg.PoolMax, w.cfg.FreezeAfter = 0, 0, 0 // unless a test is about them
	w.cfg.StopGrace, w.cfg.StartTimeout, w.cfg.DrainTimeout = time.Second, 20*time.Second, 10*time.Second
	agent := filepath.Join(dir, "agent")
	if err := os.WriteFile(agent, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	w.cfg.AgentPath = agent
	for _, k := range []**sm2.PrivateKey{&w.owner, &w.keys[0], &w.keys[1], &w.keys[2]} {
		if *k, err = sm2.GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	w.fake = runtimetest.NewFake(w.agent)
	w.fake.AddImage(runtime.Image{Ref: "img", Digest: imageDigest, Config: api.ImageConfig{Entrypoint: []string{"/fn"}}})
	w.diskFree.Store(1 << 40)
	for _, f := range change {
		f(w)
	}
	w.start()
	t.Cleanup(func() {
		w.n.Drain(context.Background())
		w.stop()
		if left := w.fake.Sandboxes(); len(left) > 0 {
			t.Errorf("sandboxes left behind: %v", left)
		}
		w.fake.Close()
	})
	return w
}

// start begins a life of the daemon.
func (w *world) start() {
	w.t.Helper()
	var rt runtime.Runtime = w.fake
	if w.watched != nil {
		rt = w.watched(rt)
	}
	log := w.log
	if log == nil {
		log = slog.DiscardHandler
	}
	var fits []Fitting
	for _, f := range []*fitter{w.net, w.disk} {
		if f != nil {
			fits = append(fits, f)
		}
	}
	n, err := New(w.cfg, Deps{
		Runtime: rt, Broker: w, Bundles: noBundles{}, Mesh: &stamper{hear: w.mesh}, Log: slog.New(log),
		Free: func() (api.Resources, error) {
			if m := w.machine.Load(); m != nil {
				return *m, nil
			}
			return api.Resources{CPU: 2000, Memory: 1 << 40, PIDs: 1 << 20}, nil
		},
		ScratchFree: func() (int64, error) { return w.diskFree.Load(), nil },
		Kernel: func() error {
			if w.kernel.Load() {
				return errors.New("overlay is gone")
			}
			return nil
		},
		Fittings: fits, Anomaly: w.anomalies, Watching: w.watching, ImagePolicy: w.imagePolicy,
		MeasureAgent: func() error { w.measured.Add(1); return nil },
		Pressure: func() (Pressure, bool, error) {
			p := w.pressure.Load()
			if p == nil {
				return Pressure{}, false, nil
			}
			return *p, true, nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := n.Start(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	breaking := &severable{Listener: ln}
	ln, w.sever = breaking, breaking.sever
	s := &fasthttp.Server{Handler: n.Handler(), StreamRequestBody: true, MaxRequestBodySize: 8 << 10, CloseOnShutdown: true,
		DisablePreParseMultipartForm: true, Logger: silent{}, ReadTimeout: 10 * time.Second}
	go s.Serve(ln)
	tr := &http.Transport{}
	w.n, w.url, w.http = n, "http://"+ln.Addr().String(), &http.Client{Transport: tr}
	w.stop = sync.OnceFunc(func() {
		tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.ShutdownWithContext(ctx); err != nil {
			w.t.Errorf("server: %v", err)
		}
		_ = ln.Close() // shutdown knows a listener only once Serve has begun
		n.Close()
	})
}

// severable is a listener whose connections can all be broken at one moment.
type severable struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

// Accept implements net.Listener.
func (l *severable) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns = append(l.conns, c)
	}
	return c, err
}

func (l *severable) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close() // it may be closed
	}
}

// crash ends the daemon without a drain and starts the next one.
func (w *world) crash() {
	w.t.Helper()
	w.stop()
	w.fake = w.fake.Reopen()
	w.start()
}

type silent struct{}

func (silent) Printf(string, ...any) {}

type noBundles struct{}

func (noBundles) Fetch(context.Context, string, string) (io.ReadCloser, error) {
	return nil, errors.New("no bundles here")
}

// Release implements Broker.
func (w *world) Release(_ context.Context, req api.ReleaseRequest) (api.ReleaseReply, error) {
	w.released.Add(1)
	if w.release != nil {
		if err := w.release(req); err != nil {
			return api.ReleaseReply{}, err
		}
	}
	return api.ReleaseReply{Sealed: []byte("keys"), Type: "node-key"}, nil
}

// Attest implements Broker.
func (w *world) Attest(_ context.Context, req api.AttestRequest) error {
	w.attested.Add(1)
	if w.attest != nil {
		return w.attest(req)
	}
	return nil
}

// stamper is a mesh of one.
type stamper struct {
	seq  atomic.Uint64
	hear func(api.NodeLoad)
}

func (s *stamper) SetLoad(l api.NodeLoad) (api.NodeLoad, error) {
	l.Epoch, l.Seq = 1, s.seq.Add(1)
	if s.hear != nil {
		s.hear(l)
	}
	return l, nil
}

func (w *world) point(k *sm2.PrivateKey) sealed.PublicKey {
	w.t.Helper()
	p, err := sealed.PublicKeyOf(k.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// function is a revision as the owner deployed it.
type function struct {
	digest sealed.Digest
	rec    api.Revision
	name   string
	seq    uint64
}

// deploy signs a descriptor; change sets more.
func (w *world) deploy(name string, seq uint64, change ...func(*sealed.Descriptor)) function {
	w.t.Helper()
	now := uint64(time.Now().Unix())
	d := &sealed.Descriptor{
		Name: name, Namespace: "ns", Sequence: seq, Issued: now,
		Config: sealed.Config{Image: imageDigest, Mode: "http", Upstream: "unix",
			Resources: sealed.Resources{CPUMillis: 400, MemoryBytes: 64 << 20, PIDs: 32, TmpBytes: 1 << 20},
			Policy:    sealed.Policy{AnyCaller: true, Attestation: []string{"node-key"}, Broker: w.point(w.keys[2])}},
		SigningKey: w.point(w.keys[0]), Decryption: []sealed.DecryptionKey{{Key: w.point(w.keys[1]), NotBefore: now - 60, NotAfter: now + 3600}},
		Suites: []uint16{sealed.SuiteSM}, ImageRef: "img",
	}
	for _, f := range change {
		f(d)
	}
	b, err := d.Sign(rand.Reader, w.owner)
	if err != nil {
		w.t.Fatal(err)
	}
	rev, err := d.Revision()
	if err != nil {
		w.t.Fatal(err)
	}
	return function{digest: rev, rec: api.Revision{Descriptor: b, ImageRef: "img"}, name: name + ".ns", seq: seq}
}

// known is a deployed function that the node was told.
func (w *world) known(name string, change ...func(*sealed.Descriptor)) function {
	w.t.Helper()
	f := w.deploy(name, 1, change...)
	w.tell(f)
	return f
}

func (w *world) tell(f function) {
	w.t.Helper()
	b, err := json.Marshal(f.rec)
	if err != nil {
		w.t.Fatal(err)
	}
	if status, _, body := w.do("PUT", api.NodePathRevisions+f.digest.String(), b); status != 204 {
		w.t.Fatalf("told a revision: %d %s", status, body)
	}
}

// rev is the node's own view of f.
func (w *world) rev(f function) *revision {
	w.t.Helper()
	r, ok := w.n.revs.get(f.digest.String())
	if !ok {
		w.t.Fatal("the node does not know the revision")
	}
	return r
}

// message is a sealed request. Agents here do not open it.
func (w *world) message(f function, size int) []byte {
	w.t.Helper()
	now := time.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: w.point(w.keys[1]), Sender: w.owner,
		Context: f.digest, Name: f.name, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute)})
	if err != nil {
		w.t.Fatal(err)
	}
	defer g.Release()
	b, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: now}, sealed.RequestHead{Method: "POST"}, make([]byte, size))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (f function) target() string {
	return fmt.Sprintf("%s?rev=%s&seq=%d", f.name, hex.EncodeToString(f.digest[:]), f.seq)
}

func (w *world) do(method, path string, body []byte, header ...string) (int, http.Header, string) {
	w.t.Helper()
	status, h, b, err := w.try(method, path, body, header...)
	if err != nil {
		w.t.Errorf("%s %s: %v", method, path, err)
	}
	return status, h, b
}

func (w *world) try(method, path string, body []byte, header ...string) (int, http.Header, string, error) {
	req, err := http.NewRequest(method, w.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b), err
}

// invoke sends a fresh message.
func (w *world) invoke(f function) (int, http.Header, string) {
	w.t.Helper()
	return w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 100))
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	w.t.Fatalf("not in time: %s", what)
}

// held is what the node has reserved, and what its sandboxes and its pool need.
func (w *world) held() (reserved, needed api.Resources, inFlight int) {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	needed = w.n.pool.held
	for _, s := range w.n.fleet {
		needed = needed.Add(s.holds)
		inFlight += s.inFlight
	}
	return w.n.ledger.reserved, needed, inFlight
}
