package proxy_test

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/proxy"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// world is a proxy before a cluster whose agent is in this process.
type world struct {
	t       *testing.T
	cluster *clienttest.Cluster
	owner   *client.Client
	ring    *client.Keyring
	url     string
	reg     *prometheus.Registry
	log     strings.Builder
	http    *http.Client

	tells atomic.Bool // of each request what it asks for, by needs
	needs chan *client.Needs
}

// unasked is an identity whose cluster knows no manifests: it tells the test what
// was asked for.
type unasked struct {
	proxy.Invoker
	w *world
}

func (u unasked) Invoke(ctx context.Context, name api.FunctionName, req client.Request) (*client.Response, error) {
	if u.w.tells.Load() {
		u.w.needs <- req.Needs
		req.Needs = nil
	}
	return u.Invoker.Invoke(ctx, name, req)
}

const fn = api.FunctionName("echo.openfaas-fn")

func start(t *testing.T, edit func(*proxy.Config), token string) *world {
	t.Helper()
	w := &world{t: t, cluster: clienttest.New(t), reg: prometheus.NewRegistry(), needs: make(chan *client.Needs, 1)}
	id, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dep := client.Config{Gateway: w.cluster.URL, Identity: id, Pins: new(client.Pins), TrustOnFirstUse: true, Transport: client.NewTransport()}
	if w.owner, err = client.New(dep); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.owner.Close)
	w.ring = client.NewKeyring(filepath.Join(t.TempDir(), "functions"), []byte("passphrase"), rand.Reader)
	w.deploy("10s")
	// Its own pins, and no trust on first use: it is the owner's own key that is believed.
	dep.TrustOnFirstUse, dep.Pins, dep.Transport = false, new(client.Pins), client.NewTransport()
	caller, err := client.New(dep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(caller.Close)
	cfg := proxy.DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	if edit != nil {
		edit(&cfg)
	}
	callers := map[string]proxy.Invoker{}
	for _, name := range cfg.Identities() {
		callers[name] = unasked{caller, w}
	}
	log := slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p, err := proxy.New(context.Background(), cfg, proxy.Deps{Callers: callers, Token: token, Log: log, Registerer: w.reg})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := daemon.Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	server := daemon.Server(p.Handler(), log)
	server.ErrorHandler = p.HandleError
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- daemon.Serve(ctx, server, ln, 10*time.Second) }()
	tr := &http.Transport{}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		p.Close()
	})
	w.url, w.http = "http://"+ln.Addr().String(), &http.Client{Transport: tr}
	return w
}

// deploy makes a revision; another exec is another revision.
func (w *world) deploy(exec string) {
	w.t.Helper()
	d, err := time.ParseDuration(exec)
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.owner.Deploy(w.t.Context(), client.Deployment{Name: fn, ImageRef: "echo", ImageDigest: "sha256:" + strings.Repeat("0a", 32), Mode: "http", Upstream: "unix",
		Resources: api.Resources{CPU: 500, Memory: 128 << 20, PIDs: 64}, AnyCaller: true, Attestation: []string{"node-key"}, Keys: w.ring, Exec: d,
		PushBundle: func(context.Context, string, *os.File, int64) (string, error) { return "", nil }})
	if err != nil {
		w.t.Fatal(err)
	}
}

// do sends a request; header is pairs.
func (w *world) do(method, path string, body io.Reader, header ...string) *http.Response {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	w.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Add(header[i], header[i+1])
	}
	res, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { res.Body.Close() })
	return res
}

func read(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// refused expects a problem with this code.
func refused(t *testing.T, res *http.Response, status int, code api.Code) {
	t.Helper()
	b := read(t, res)
	if e := api.ParseProblem(res.StatusCode, []byte(b)); res.StatusCode != status || e.Code != code || e.Message == "" || e.Remedy == "" {
		t.Errorf("%d %s, want %d %s with message and remedy", res.StatusCode, b, status, code)
	}
}

func (w *world) counted(name string, labels ...string) float64 {
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var got []string
			for _, l := range m.GetLabel() {
				got = append(got, l.GetValue())
			}
			if strings.Join(got, " ") == strings.Join(labels, " ") {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func raw(t *testing.T, w *world, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}
