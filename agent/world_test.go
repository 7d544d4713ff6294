package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// The ids that functions run under in these tests.
const testUID, testGID = 10001, 10001

// testBinary is a copy of this test binary that every user can execute: it is
// launcher, shim and function in one.
var testBinary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "launcher":
			if err := launcher.Main(false); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		case "fn":
			return serveTestFunction(os.Args[2:])
		}
	}
	if os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("", "agent-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if testBinary, err = publicCopy(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code := m.Run()
	if code == 0 {
		// fasthttp's worker pool looks every 10 s whether it was stopped, and its
		// clock for Date headers, once started, stays; so do clients of benchmarks.
		if err := goleak.Find(goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
			goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
			goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*HostClient).connsCleaner")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

func publicCopy(dir string) (string, error) {
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	src, err := os.Open(self)
	if err != nil {
		return "", err
	}
	defer src.Close()
	path := filepath.Join(dir, "agent")
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(dst, src); err != nil {
		return "", err
	}
	return path, dst.Close()
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("this test changes user ids and needs root")
	}
	t.Skip("needs root")
}

// world is a sandbox without containerd: an agent in this process, a launcher
// and functions as real processes of another user, and a node played by the test.
type world struct {
	t        testing.TB
	dir      string
	cfg      Config
	owner    *unseal.Identity
	broker   *unseal.Identity
	function *unseal.Identity
	caller   *unseal.Identity
	desc     sealed.Descriptor
	signed   []byte
	revision sealed.Digest
	image    api.ImageConfig
	bundle   []byte // sealed, if there is one
	plain    []byte // the bundle in clear
	grants   *sealed.GrantCache
	http     *http.Transport
	node     *testNode
	cancel   context.CancelFunc
	done     chan error
	stopped  sync.Once
	result   error
	refuse   *api.Problem // instead of keys
	release  func(*unseal.Release)
	kills    func() int64

	holdBundle chan struct{}  // if set, the bundle is not sent
	late       chan struct{}  // if set, the sandbox is bound when it closes
	waiting    []byte         // the grant of who waits, if any
	openly     *api.PlainBind // the sandbox is bound to a plain function
	secrets    map[string][]byte
}

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// newWorld makes keys and a descriptor; edit changes it before it is signed.
func newWorld(t testing.TB, edit func(*world)) *world {
	t.Helper()
	needRoot(t)
	id := func() *unseal.Identity { return must[*unseal.Identity](t)(unseal.NewIdentity(rand.Reader)) }
	w := &world{t: t, dir: t.TempDir(), owner: id(), broker: id(), function: id(), caller: id(),
		kills: func() int64 { return 0 }}
	w.cfg = DefaultConfig()
	w.cfg.RunDir, w.cfg.SecretsDir = w.dir, filepath.Join(w.dir, "secrets")
	w.cfg.Redial, w.cfg.Linger = 10*time.Millisecond, 200*time.Millisecond
	w.cfg.Version = "test"
	w.cfg.Launcher = launcher.Command{Path: testBinary, Args: []string{"launcher"}, UID: testUID, GID: testGID}
	now := time.Now()
	w.desc = sealed.Descriptor{Name: "hello", Namespace: "openfaas-fn", Sequence: 1, Issued: uint64(now.Unix()),
		Config: sealed.Config{Image: "sha256:" + strings.Repeat("ab", 32), Mode: sealed.ModeHTTP, Upstream: "unix",
			Argv: []string{testBinary, "fn", "http"},
			Policy: sealed.Policy{Callers: []sealed.Fingerprint{w.caller.SigningKey().Fingerprint()},
				Attestation: []string{"node-key"}, Broker: w.broker.SigningKey()},
			Resources: sealed.Resources{CPUMillis: 500, MemoryBytes: 64 << 20, PIDs: 128}},
		SigningKey: w.function.SigningKey(), Suites: []uint16{sealed.SuiteSM}, LogRecipient: w.owner.DecryptionKey(),
		Decryption: []sealed.DecryptionKey{{Key: w.function.DecryptionKey(),
			NotBefore: uint64(now.Add(-time.Hour).Unix()), NotAfter: uint64(now.Add(24 * time.Hour).Unix())}},
	}
	if edit != nil {
		edit(w)
	}
	w.signed = must[[]byte](t)(w.desc.Sign(rand.Reader, w.owner.Signer()))
	w.revision = must[sealed.Digest](t)(w.desc.Revision())
	w.grants = must[*sealed.GrantCache](t)(sealed.NewGrantCache(sealed.DefaultGrantCacheConfig()))
	w.http = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", w.cfg.httpSocket())
	}}
	t.Cleanup(w.http.CloseIdleConnections)
	return w
}

// run starts node and agent.
func (w *world) run() *world {
	w.t.Helper()
	w.node = newTestNode(w)
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.done = cancel, make(chan error, 1)
	go func() { w.done <- Run(ctx, w.cfg) }()
	w.t.Cleanup(func() {
		w.stop()
		w.node.close()
	})
	return w
}

// start is run, and waits until the agent is ready.
func (w *world) start() *world {
	w.t.Helper()
	w.run()
	w.node.wait("ready", func(n *testNode) bool { return n.ready })
	return w
}

// stop ends the agent and returns what Run returned.
func (w *world) stop() error {
	w.stopped.Do(func() {
		w.cancel()
		select {
		case w.result = <-w.done:
		case <-time.After(15 * time.Second):
			w.result = errors.New("the agent does not end")
			w.t.Error(w.result)
		}
	})
	return w.result
}

// testNode plays the node's part of the control channel.
type testNode struct {
	w    *world
	ln   *net.UnixListener
	wg   sync.WaitGroup
	mu   sync.Mutex
	cond *sync.Cond
	conn *net.UnixConn

	hellos  []api.Hello
	pids    []int
	ready   bool
	failed  *api.Problem
	exited  *api.Exited
	logs    []logRecord
	bundles []error

	wantsBundle bool
}

func newTestNode(w *world) *testNode {
	n := &testNode{w: w}
	n.cond = sync.NewCond(&n.mu)
	n.listen()
	return n
}

func (n *testNode) listen() {
	path := n.w.cfg.nodeSocket()
	_ = os.Remove(path)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.ln = ln
	n.wg.Go(func() {
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			n.serve(c)
		}
	})
}

// close is what the death of a node daemon looks like.
func (n *testNode) close() {
	n.ln.Close()
	n.mu.Lock()
	if n.conn != nil {
		n.conn.Close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// wait waits for a state.
func (n *testNode) wait(what string, ok func(*testNode) bool) {
	n.w.t.Helper()
	deadline := time.AfterFunc(15*time.Second, n.cond.Broadcast)
	defer deadline.Stop()
	end := time.Now().Add(15 * time.Second)
	n.mu.Lock()
	defer n.mu.Unlock()
	for !ok(n) {
		if time.Now().After(end) || n.failed != nil && what == "ready" {
			n.w.t.Fatalf("waiting for %s: failed=%+v exited=%+v hellos=%+v", what, n.failed, n.exited, n.hellos)
		}
		n.cond.Wait()
	}
}

func (n *testNode) send(c api.Control) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		_ = api.WriteControl(n.conn, c)
	}
}

func (n *testNode) serve(c *net.UnixConn) {
	defer c.Close()
	first, oob := make([]byte, 1), make([]byte, 64)
	_, oobn, _, _, err := c.ReadMsgUnix(first, oob)
	if err != nil {
		return
	}
	pid := 0
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			pid = pidOf(fds[0])
			_ = syscall.Close(fds[0])
		}
	}
	r := io.MultiReader(bytes.NewReader(first), c)
	n.mu.Lock()
	n.conn = c
	n.mu.Unlock()
	for {
		f, err := api.ReadControl(r)
		if err != nil {
			return
		}
		n.frame(f, pid)
	}
}

// pidOf reads the process that a pidfd names.
func pidOf(fd int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "Pid:\t"); ok {
			pid, _ := strconv.Atoi(v)
			return pid
		}
	}
	return 0
}

func (n *testNode) frame(f api.Control, pid int) {
	w := n.w
	n.mu.Lock()
	defer func() {
		n.cond.Broadcast()
		n.mu.Unlock()
	}()
	reply := func(c api.Control) { _ = api.WriteControl(n.conn, c) }
	switch {
	case f.Hello != nil:
		n.hellos, n.pids = append(n.hellos, *f.Hello), append(n.pids, pid)
		if f.Hello.Ready {
			n.ready = true
		}
		if !f.Hello.Bound {
			if w.late != nil {
				<-w.late
			}
			bind := &api.Bind{Descriptor: w.signed, Image: w.image}
			if w.openly != nil {
				bind = &api.Bind{Plain: w.openly, Image: w.image}
			}
			reply(api.Control{Bind: bind})
			if w.waiting != nil {
				reply(api.Control{Waiting: &api.Waiting{Grant: w.waiting}})
			}
			reply(api.Control{Mounted: &api.Mounted{UID: testUID, GID: testGID}})
		}
		if len(f.Hello.Statement) == 0 {
			return
		}
		if w.refuse != nil {
			reply(api.Control{Refused: w.refuse})
			return
		}
		sealedRelease, err := w.sealRelease(f.Hello.Statement)
		if err != nil {
			w.t.Errorf("release: %v", err)
			return
		}
		reply(api.Control{Keys: &api.ReleaseReply{Sealed: sealedRelease, Type: "node-key"}})
	case f.NeedBundle != nil:
		n.wantsBundle = true
		n.wg.Go(func() {
			if w.holdBundle != nil {
				<-w.holdBundle
				return
			}
			err := w.putBundle(w.bundle)
			n.mu.Lock()
			n.bundles = append(n.bundles, err)
			n.cond.Broadcast()
			n.mu.Unlock()
		})
	case f.Ready != nil:
		n.ready = true
	case f.Failed != nil:
		n.failed = f.Failed
	case f.Exited != nil:
		n.exited = f.Exited
	case f.AskOOM != nil:
		reply(api.Control{OOM: &api.OOM{ID: f.AskOOM.ID, Kills: w.kills()}})
	case f.Log != nil:
		for _, l := range f.Log.Lines {
			n.logs = append(n.logs, logRecord{Time: l.Time, Stream: uint(l.Stream), Text: l.Text})
		}
		if w.openly != nil {
			return
		}
		batch, err := w.openLog(f.Log.Sealed)
		if err != nil {
			w.t.Errorf("log: %v", err)
		}
		n.logs = append(n.logs, batch...)
	}
}

// logged reports whether the owner has read a line with text on stream.
func (n *testNode) logged(stream uint, text string) bool {
	for _, r := range n.logs {
		if r.Stream == stream && strings.Contains(r.Text, text) {
			return true
		}
	}
	return false
}
