// Package e2e tests the real binaries on a real containerd.
package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// need skips where the machine cannot run sandboxes, and fails where it must.
func need(t testing.TB) {
	t.Helper()
	var why string
	if os.Geteuid() != 0 {
		why = "needs root"
	}
	for _, p := range []string{"containerd", "runc"} {
		if _, err := exec.LookPath(p); err != nil {
			why = "needs " + p + "; run scripts/setup.sh"
		}
	}
	if why == "" {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// binaries builds what the tests run, once.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "faasd-sec-bin-")
	if err != nil {
		return "", err
	}
	for _, b := range []string{"coordinator", "keybroker", "manifest-opener", "node", "agent", "faasd-sec", "containerd-shim-faasdsec-v1", "containerd-shim-faasdsec-server"} {
		if err := goBuild(filepath.Join(dir, b), "github.com/faasd-sec/faasd-sec/cmd/"+b); err != nil {
			return "", err
		}
	}
	return dir, goBuild(filepath.Join(dir, "testfn"), "github.com/faasd-sec/faasd-sec/test/function")
})

func goBuild(out, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if filepath.Base(out) == "manifest-opener" { // as the Makefile builds it
		cmd.Env = append(cmd.Env, "GOEXPERIMENT=runtimesecret")
	}
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	return nil
}

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := binaries(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func bin(t testing.TB, name string) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// fresh reports whether a call started a sandbox, by how it was told to.
func fresh(start string) bool { return start == "cold" || start == "pooled" }

// cluster is a running cluster and an owner who uses it.
type cluster struct {
	*local.Cluster
	gateway   string            // URL
	transport http.RoundTripper // nil: from this machine's own network
	id        *unseal.Identity
	client    *client.Client
	pins      *client.Pins
	keyring   *client.Keyring
}

// up starts a cluster and stops it with the test. More can be set by change.
func up(t testing.TB, nodes int, change ...func(*local.Config)) *cluster {
	t.Helper()
	need(t)
	state, err := os.MkdirTemp("", "fs-")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&testWriter{t: t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := local.Config{Nodes: nodes, State: state, Listen: "127.0.0.1:0", Bin: filepath.Dir(bin(t, "node")), Log: log}
	for _, f := range change {
		f(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lc, err := local.Start(ctx, cfg)
	if err != nil {
		dumpLogs(t, state)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := lc.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
		if t.Failed() {
			dumpLogs(t, state)
		}
		os.RemoveAll(state)
	})
	return newOwner(t, lc)
}

// newOwner gives a cluster's user keys and pins.
func newOwner(t testing.TB, lc *local.Cluster) *cluster {
	t.Helper()
	c := &cluster{Cluster: lc, gateway: lc.Gateway()}
	c.own(t, lc.Broker())
	if err := c.pins.SetOpener(c.gateway, c.openerKey(t, lc.ManifestKeys())); err != nil {
		t.Fatal(err)
	}
	return c
}

// openerKey is the identity of a cluster's manifest opener, to be pinned.
func (c *cluster) openerKey(t testing.TB, keys api.ManifestKeys) sealed.PublicKey {
	t.Helper()
	pub, err := sealed.ParsePublicKeyText(keys.Identity)
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

// Gateway is the URL for callers and owners.
func (c *cluster) Gateway() string { return c.gateway }

// own gives the cluster's user keys, and broker as the one to trust.
func (c *cluster) own(t testing.TB, broker api.BrokerInfo) {
	t.Helper()
	var err error
	if c.id, err = unseal.NewIdentity(rand.Reader); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := client.PinBroker(dir, c.gateway, broker); err != nil {
		t.Fatal(err)
	}
	if c.pins, err = client.OpenPins(dir); err != nil {
		t.Fatal(err)
	}
	c.keyring = client.NewKeyring(filepath.Join(dir, "functions"), []byte("test"), rand.Reader)
	if c.client, err = client.New(client.Config{Gateway: c.gateway, Identity: c.id, Pins: c.pins, Transport: c.transport}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
}

// dumpLogs shows the end of the daemons' logs of a failed test, and before it what
// was wrong earlier.
func dumpLogs(t testing.TB, state string) {
	files, _ := filepath.Glob(filepath.Join(state, "logs", "*.log"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		const last, most = 6000, 40
		cut := bytes.LastIndexByte(b[:max(0, len(b)-last)], '\n') + 1
		var wrong []byte
		for line := range bytes.Lines(b[:cut]) {
			if bytes.Contains(line, []byte(`"level":"ERROR"`)) && bytes.Count(wrong, []byte("\n")) < most {
				wrong = append(wrong, line...)
			}
		}
		t.Logf("---- %s\n%s%s", filepath.Base(f), wrong, b[cut:])
	}
}

type testWriter struct {
	t  testing.TB
	mu sync.Mutex
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// signed is a transport that signs as the owner.
func (c *cluster) signed() http.RoundTripper {
	base := c.transport
	if base == nil {
		base = http.DefaultTransport
	}
	return &reqauth.Transport{
		Base: base, Unsigned: reqauth.RegistryUpload,
		Signer: &reqauth.Signer{Key: c.id.Signer(), Random: rand.Reader, Now: time.Now},
	}
}

// pushTestImage pushes an image that holds the test function, and returns its
// digest.
func (c *cluster) pushTestImage(t testing.TB, repo string) string {
	t.Helper()
	b, err := os.ReadFile(bin(t, "testfn"))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := tw.WriteHeader(&tar.Header{Name: "fn", Mode: 0o755, Size: int64(len(b))}); err != nil {
		t.Fatal(err)
	}
	tw.Write(b)
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/fn"}}); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(c.Gateway(), "http://")
	ref, err := name.NewTag(host+"/"+repo+":latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithTransport(c.signed()), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// deploy deploys the test function; change sets more.
func (c *cluster) deploy(t testing.TB, fn string, change ...func(*client.Deployment)) api.FunctionName {
	t.Helper()
	full, err := c.tryDeploy(t, fn, change...)
	if err != nil {
		t.Fatal(err)
	}
	return full
}

// tryDeploy is deploy where the coordinator may refuse.
func (c *cluster) tryDeploy(t testing.TB, fn string, change ...func(*client.Deployment)) (api.FunctionName, error) {
	t.Helper()
	full, err := api.ParseFunctionName(fn)
	if err != nil {
		t.Fatal(err)
	}
	d := client.Deployment{
		Name: full, ImageRef: "test/" + fn, ImageDigest: c.pushTestImage(t, "test/"+fn), Mode: "http", Upstream: "unix",
		Resources: api.Resources{CPU: 500, Memory: 64 << 20, PIDs: 128, Tmp: 16 << 20},
		Exec:      20 * time.Second, Attestation: []string{"node-key"},
		Callers: []sealed.Fingerprint{c.fingerprint()}, Keys: c.keyring, PushBundle: c.pushBundle,
	}
	for _, f := range change {
		f(&d)
	}
	if _, err := c.client.Deploy(t.Context(), d); err != nil {
		return full, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	roll, err := c.client.AwaitRollout(ctx, full)
	if err == nil && roll != nil && roll.State == api.RolloutFailed {
		err = api.Errorf(roll.Code, "revision %s was taken back: %s", roll.To, roll.Reason)
	}
	return full, err
}

func (c *cluster) fingerprint() sealed.Fingerprint {
	return c.id.SigningKey().Fingerprint()
}

// pushBundle is how a deployment's sealed bundle gets into the registry.
func (c *cluster) pushBundle(ctx context.Context, repo string, blob *os.File, size int64) (string, error) {
	r := &image.Remote{Registry: strings.TrimPrefix(c.Gateway(), "http://"), Transport: c.signed(), PlainHTTP: true}
	return r.PushBlob(ctx, repo, blob, size)
}

// invoke calls a function and reads the whole reply.
func (c *cluster) invoke(t testing.TB, fn api.FunctionName, req client.Request) (*client.Response, []byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	resp, err := c.client.Invoke(ctx, fn, req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

// must calls a function and expects status 200.
func (c *cluster) must(t testing.TB, fn api.FunctionName, path, body string) string {
	t.Helper()
	p, q, _ := strings.Cut(path, "?")
	resp, b, err := c.invoke(t, fn, client.Request{Path: p, Query: q, Body: strings.NewReader(body)})
	if err != nil {
		t.Fatalf("invoke %s: %v", path, err)
	}
	if resp.Status != http.StatusOK {
		t.Fatalf("invoke %s: status %d: %s", path, resp.Status, b)
	}
	return string(b)
}

// commands runs faasd-sec as an owner whose configuration is in dir: its outputs and
// error, or the output of what must succeed.
func (c *cluster) commands(t testing.TB, dir string) (command func(args ...string) (string, error), must func(args ...string) string) {
	command = func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), bin(t, "faasd-sec"), append(args, "--gateway", c.gateway, "--config-dir", dir)...)
		cmd.Env = []string{"FAASD_SEC_PASSPHRASE=passphrase", "PATH=" + os.Getenv("PATH")}
		b, err := cmd.CombinedOutput()
		return string(b), err
	}
	return command, func(args ...string) string {
		t.Helper()
		out, err := command(args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
}
