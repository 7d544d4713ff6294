package containerd

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/containerd/daemon"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// bench is one private containerd with a test agent and an image in it, shared
// by the tests of the package.
type bench struct {
	dir    string
	daemon *daemon.Daemon
	agent  string
	probe  string
	shim   string // of the tests at work: "" for runc's
	own    string // path of our own shim
	older  bool   // compose as kernels before Linux 6.15 have to
	serial *atomic.Int64
}

// eachShim runs a test with runc's shim and with our own: the verdicts are to be
// the same.
func eachShim(t *testing.T, test func(t *testing.T, b *bench)) {
	b := need(t)
	for name, path := range map[string]string{"runc": "", "own": b.own} {
		t.Run(name, func(t *testing.T) {
			with := *b
			with.shim = path
			test(t, &with)
		})
	}
}

// eachBind is eachShim for what concerns sandboxes that waited for their function:
// with our own shim also as on kernels that compose mounted layers alone.
func eachBind(t *testing.T, test func(t *testing.T, b *bench)) {
	eachShim(t, test)
	t.Run("older", func(t *testing.T) {
		with := *need(t)
		with.shim, with.older = with.own, true
		test(t, &with)
	})
}

// composeAsBefore makes a new runtime do without what kernels from Linux 6.15 on
// can do with trees that are mounted nowhere.
func (r *Runtime) composeAsBefore(t testing.TB) {
	t.Helper()
	r.endBind()
	r.compose.detached = false
	if err := r.prepareBind(); err != nil {
		t.Fatal(err)
	}
}

const crashChild = "FAASD_SEC_CRASH_CHILD"

var shared *bench // made by TestMain, read-only afterwards

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	if os.Getuid() != 0 {
		return m.Run() // tests that need the bench skip, or fail where all are required
	}
	if os.Getenv(crashChild) != "" {
		return m.Run() // the child of a crash test uses its parent's daemon
	}
	b, err := newBench()
	if err != nil {
		fmt.Fprintln(os.Stderr, "no containerd for tests:", err)
		if os.Getenv("REQUIRE_ALL") == "1" {
			return 1
		}
		return m.Run()
	}
	shared = b
	defer func() {
		if err := b.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	return m.Run()
}

func newBench() (_ *bench, retErr error) {
	dir, err := os.MkdirTemp("", "fsrt")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	b := &bench{dir: dir, agent: filepath.Join(dir, "agent"), probe: filepath.Join(dir, "probe"),
		own: filepath.Join(dir, "containerd-shim-faasdsec-v1"), serial: new(atomic.Int64)}
	for _, part := range []string{"v1", "server"} {
		name := "containerd-shim-faasdsec-" + part
		if err := runtimetest.Build(ctx, "github.com/faasd-sec/faasd-sec/cmd/"+name, filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	if err := runtimetest.Build(ctx, runtimetest.TestAgent, b.agent); err != nil {
		return nil, err
	}
	if b.daemon, err = daemon.Start(ctx, daemon.Default(filepath.Join(dir, "c"))); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *bench) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.daemon.Stop(ctx); err != nil {
		return err
	}
	return os.RemoveAll(b.dir)
}

// need gives the shared bench or ends the test.
func need(t testing.TB) *bench {
	t.Helper()
	if shared == nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("containerd or root is missing, and REQUIRE_ALL=1")
		}
		t.Skip("needs root and containerd")
	}
	return shared
}

// config is for a runtime of its own namespace and directory.
func (b *bench) config(t testing.TB) Config {
	name := fmt.Sprintf("t%d-%d", os.Getpid(), b.serial.Add(1))
	cfg := Default(b.daemon.Address(), name, filepath.Join(b.dir, "r", name))
	if b.shim != "" {
		cfg.Shim = b.shim
	}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return cfg
}

// open makes a runtime and ends it, with all it has, after the test.
func (b *bench) open(t testing.TB) *Runtime {
	t.Helper()
	return b.openWith(t, b.config(t))
}

func (b *bench) openWith(t testing.TB, cfg Config) *Runtime {
	t.Helper()
	r, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r.mu.Lock()
		closed := r.closed
		r.mu.Unlock()
		if closed {
			return // another one on the same directory has taken over
		}
		if err := r.Purge(ctx); err != nil {
			t.Error(err)
		}
	})
	if b.older {
		r.composeAsBefore(t)
	}
	return r
}

// image imports an image of the given layers.
func load(t testing.TB, r *Runtime, config ocispec.ImageConfig, layers ...[]runtimetest.File) runtime.Image {
	t.Helper()
	archive, dgst, err := runtimetest.Archive(config, layers...)
	if err != nil {
		t.Fatal(err)
	}
	imgs, err := r.Import(t.Context(), bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	if len(imgs) != 1 || imgs[0].Digest != dgst {
		t.Fatalf("imported %+v, want the one image %s", imgs, dgst)
	}
	return imgs[0]
}

// basic is an image with the test agent as its only program, /bin/fn.
func (b *bench) basic(t testing.TB, r *Runtime) runtime.Image {
	t.Helper()
	body, err := os.ReadFile(b.agent)
	if err != nil {
		t.Fatal(err)
	}
	return load(t, r, ocispec.ImageConfig{Cmd: []string{"/bin/fn"}},
		[]runtimetest.File{{Path: "bin/fn", Body: body}},
		[]runtimetest.File{{Path: "etc/passwd", Body: []byte("root:x:0:0::/:/bin/sh\napp:x:1234:1235::/:/bin/sh\n"), Mode: 0o644}})
}

// spec asks for a small sandbox with its own socket directory.
func (b *bench) spec(t testing.TB, r *Runtime, img runtime.Image) runtime.Spec {
	t.Helper()
	id := fmt.Sprintf("s%d", b.serial.Add(1))
	dir := filepath.Join(r.cfg.RunDir, "sock", id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return runtime.Spec{
		ID: id, Function: "f.openfaas-fn", Revision: "0123", Image: img, AgentPath: b.agent, SocketDir: dir,
		Resources: api.Resources{CPU: 500, Memory: 64 << 20, PIDs: 64},
	}
}

// start creates a sandbox and connects to its agent.
func (b *bench) start(t testing.TB, r *Runtime, spec runtime.Spec) (runtime.Sandbox, *runtimetest.Agent) {
	t.Helper()
	s, err := r.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return s, dial(t, spec.SocketDir)
}

func dial(t testing.TB, dir string) *runtimetest.Agent {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := runtimetest.Dial(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil && !isClosed(err) {
			t.Error(err)
		}
	})
	return a
}

func isClosed(err error) bool {
	op, ok := err.(*net.OpError)
	return ok && op != nil
}
