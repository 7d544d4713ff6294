// Package openfaas tests that a cluster is to clients of OpenFaaS what OpenFaaS is:
// the real binaries, a real containerd and a real image, over HTTP alone. Each part of
// the surface that docs/openfaas.md describes is a part of the test.
package openfaas

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/faasd-sec/faasd-sec/coordinator/openfaas"
	"github.com/faasd-sec/faasd-sec/local"
)

const module = "github.com/faasd-sec/faasd-sec/"

// need skips where the machine cannot run sandboxes, and fails where it must.
func need(t testing.TB) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "needs root"
	}
	for _, p := range []string{"containerd", "runc"} {
		if _, err := exec.LookPath(p); err != nil {
			why = "needs " + p + "; run scripts/setup.sh"
		}
	}
	switch {
	case why != "" && os.Getenv("REQUIRE_ALL") == "1":
		t.Fatal(why)
	case why != "":
		t.Skip(why)
	}
}

// build makes the binaries of a cluster and the image's program in a directory.
func build(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	run := func(env string, args ...string) {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", env)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %v: %v\n%s", args, err, b)
		}
	}
	var list []string
	for _, b := range []string{"coordinator", "keybroker", "node", "agent", "containerd-shim-faasdsec-v1", "containerd-shim-faasdsec-server", "faasd-sec"} {
		list = append(list, module+"cmd/"+b)
	}
	run("", append(list, module+"test/openfaas/watchdog")...)
	run("GOEXPERIMENT=runtimesecret", module+"cmd/manifest-opener") // as the Makefile builds it
	return dir
}

// cluster is a running cluster and a client that is logged in.
type cluster struct {
	*local.Cluster
	cli *faasCLI
	bin string // directory of the binaries
}

func up(t *testing.T) *cluster {
	t.Helper()
	need(t)
	bin := build(t)
	state, err := os.MkdirTemp("", "of-") // short: there are sockets in it
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := local.Start(ctx, local.Config{Nodes: 1, State: state, Listen: "127.0.0.1:0", Bin: bin, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		dump(t, state)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
		if t.Failed() {
			dump(t, state)
		}
		os.RemoveAll(state)
	})
	read := func(file string) string {
		b, err := os.ReadFile(filepath.Join(c.BasicAuth(), file))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	cli := &faasCLI{gateway: c.Gateway(), user: read(openfaas.UserFile), password: read(openfaas.PasswordFile)}
	push(t, cli, bin, testImage, "/usr/bin/watchdog")
	push(t, cli, bin, brokenImage, "/usr/bin/none")
	return &cluster{Cluster: c, bin: bin, cli: cli}
}

func dump(t *testing.T, state string) {
	files, _ := filepath.Glob(filepath.Join(state, "logs", "*.log"))
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			t.Logf("---- %s\n%s", filepath.Base(f), b[max(0, len(b)-4000):])
		}
	}
}

// testImage is what the tests deploy, in the cluster's own registry. Its environment
// has a variable that must not be seen in what is described. brokenImage cannot be
// started.
const (
	testImage   = "test/watchdog:latest"
	brokenImage = "test/broken:latest"
)

// watchdogImage is an image of the watchdog and the programs it runs.
func watchdogImage(t *testing.T, bin, entrypoint string) v1.Image {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(bin, "watchdog"))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		tw.Write(content)
	}
	add(tar.Header{Name: "usr/bin/watchdog", Mode: 0o755}, b)
	for _, s := range []string{"env", "cat", "sha512sum", "sleep", "false", "flaky", "touch"} {
		add(tar.Header{Name: "usr/bin/" + s, Typeflag: tar.TypeSymlink, Linkname: "watchdog"}, nil)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		img, err = mutate.Config(img, v1.Config{Entrypoint: []string{entrypoint}, Env: []string{"PATH=/usr/bin", "of_the_image=1"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// push puts an image into the cluster's registry, as clients of any registry do.
func push(t *testing.T, cli *faasCLI, bin, repo, entrypoint string) {
	t.Helper()
	ref, err := name.NewTag(strings.TrimPrefix(cli.gateway, "http://")+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, watchdogImage(t, bin, entrypoint), remote.WithAuth(&authn.Basic{Username: cli.user, Password: cli.password}), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until f has no complaint.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	within(t, 30*time.Second, what, f)
}

// within is eventually with another limit.
func within(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// want compares a reply with what it should be; says is part of its body.
func want(r reply, status int, says string) error {
	if r.status != status || !strings.Contains(r.body, says) {
		return fmt.Errorf("status %d, %q; want %d with %q", r.status, r.body, status, says)
	}
	return nil
}

// internal is want of an answer that is the platform's own.
func internal(r reply, status int, says string) error {
	if err := want(r, status, says); err != nil {
		return err
	}
	if r.header.Get("X-OpenFaaS-Internal") == "" {
		return fmt.Errorf("status %d is not marked as the platform's: %v", r.status, r.header)
	}
	return nil
}

func (c *cluster) internal(t *testing.T, r reply, status int, says string) {
	t.Helper()
	if err := internal(r, status, says); err != nil {
		t.Error(err)
	}
}

func (c *cluster) want(t *testing.T, r reply, status int, says string) {
	t.Helper()
	if err := want(r, status, says); err != nil {
		t.Error(err)
	}
}
