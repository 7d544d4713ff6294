package containerd

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// registry serves the blobs of an OCI layout over the distribution protocol
// and counts its requests.
func registry(t *testing.T, archive []byte, requests *atomic.Int64) http.Handler {
	t.Helper()
	blobs := make(map[string][]byte)
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if blobs[strings.ReplaceAll(strings.TrimPrefix(h.Name, "blobs/"), "/", ":")], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		requests.Add(1)
		name := req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:]
		body, ok := blobs[name]
		if !ok {
			http.NotFound(w, req)
			return
		}
		w.Header().Set("Docker-Content-Digest", name)
		if strings.Contains(req.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		}
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
	})
}

// served is an image in a registry that a runtime of cfg trusts, and counts requests.
func (b *bench) served(t *testing.T, image ocispec.ImageConfig) (cfg Config, host, dgst string, requests *atomic.Int64) {
	t.Helper()
	archive, dgst, err := runtimetest.Archive(image, b.program(t))
	if err != nil {
		t.Fatal(err)
	}
	requests = &atomic.Int64{}
	srv := httptest.NewTLSServer(registry(t, archive, requests))
	t.Cleanup(srv.Close)
	cfg, host = b.config(t), srv.Listener.Addr().String()
	cfg.Registries = map[string]Registry{host: {Client: srv.Client()}} // trusts the server's certificate
	return cfg, host, dgst, requests
}

func TestPullAsksTheRegistryOnce(t *testing.T) {
	b := need(t)
	cfg, host, dgst, requests := b.served(t, ocispec.ImageConfig{Cmd: []string{"/bin/fn"}, WorkingDir: "/srv", Env: []string{"A=b"}})
	r := b.openWith(t, cfg)
	img, err := r.Pull(t.Context(), host+"/team/fn:latest", dgst)
	if err != nil {
		t.Fatal(err)
	}
	if img.Digest != dgst || img.Size == 0 || img.Config.WorkingDir != "/srv" || len(img.Config.Cmd) != 1 || len(img.Config.Env) != 1 {
		t.Errorf("pulled %+v", img)
	}
	first := requests.Load()
	if _, err := r.Pull(t.Context(), host+"/team/fn:latest", dgst); err != nil {
		t.Fatal(err)
	}
	if n := requests.Load(); first == 0 || n != first {
		t.Errorf("%d requests for the first pull, %d after the second", first, n)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = b.openWith(t, cfg) // a restart forgets nothing
	if _, err := r.Pull(t.Context(), host+"/team/fn", dgst); err != nil || requests.Load() != first {
		t.Errorf("after a restart: %v, %d requests more", err, requests.Load()-first)
	}
	b.start(t, r, b.spec(t, r, img))
	other := "sha256:" + strings.Repeat("0", 64)
	if _, err := r.Pull(t.Context(), host+"/team/fn:latest", other); err == nil {
		t.Error("a digest that the registry does not have was pulled")
	}
	for _, bad := range []string{"", "latest", "sha256:12"} {
		if _, err := r.Pull(t.Context(), host+"/team/fn", bad); err == nil {
			t.Errorf("digest %q was pulled", bad)
		}
	}
}

func TestAnUntrustedRegistryIsRefused(t *testing.T) {
	b := need(t)
	archive, dgst, err := runtimetest.Archive(ocispec.ImageConfig{}, b.program(t))
	if err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int64
	srv := httptest.NewUnstartedServer(registry(t, archive, &requests))
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	defer srv.Close()
	r := b.open(t)
	if _, err := r.Pull(t.Context(), srv.Listener.Addr().String()+"/fn", dgst); err == nil || requests.Load() != 0 {
		t.Errorf("pulled from a server with an unknown certificate: %v, %d requests", err, requests.Load())
	}
}

func TestARunningSandboxKeepsAForgottenImage(t *testing.T) {
	b := need(t)
	r := b.open(t)
	img := b.basic(t, r)
	s, a := b.start(t, r, b.spec(t, r, img))
	if err := r.Forget(t.Context(), img.Digest); err != nil {
		t.Fatal(err)
	}
	if err := r.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	sn := r.client.SnapshotService(r.cfg.Snapshotter)
	if _, err := sn.Stat(t.Context(), viewKey(img.Digest)); err != nil {
		t.Errorf("the view of a running sandbox: %v", err)
	}
	if got := output(t, a, "cat", "/etc/passwd"); !strings.Contains(got, "root") {
		t.Errorf("the image's files are gone: %q", got)
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := sn.Stat(t.Context(), viewKey(img.Digest)); !errdefs.IsNotFound(err) {
		t.Errorf("the view of a forgotten image without sandboxes: %v, want not found", err)
	}
	// And it can come back.
	b.start(t, r, b.spec(t, r, b.basic(t, r)))
}

func TestReferencesAreByDigest(t *testing.T) {
	for ref, want := range map[string]string{
		"host:5000/a/b:tag":        "host:5000/a/b@sha256:x",
		"host:5000/a/b":            "host:5000/a/b@sha256:x",
		"host/a:1@sha256:whatever": "host/a@sha256:x",
	} {
		if got := byDigest(ref, "sha256:x"); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
}

// A node tells the others of the newest ones alone.
func TestImagesAreListedNewestFirst(t *testing.T) {
	b := need(t)
	r := b.open(t)
	var want []string
	for i := range 5 {
		img := load(t, r, ocispec.ImageConfig{}, []runtimetest.File{{Path: "n", Body: []byte{byte(i)}}})
		want = append([]string{img.Digest}, want...)
	}
	got, err := r.Images(t.Context())
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
