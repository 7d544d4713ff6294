package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/registry"
)

// serve runs the built-in registry, which wants an Authorization header.
func serve(t *testing.T) (*registry.Registry, *httptest.Server) {
	t.Helper()
	cfg := registry.DefaultConfig(filepath.Join(t.TempDir(), "reg"), slog.New(slog.NewTextHandler(t.Output(), nil)))
	cfg.MinFreeBytes = 0
	cfg.Authorize = func(r *http.Request, a registry.Access) error {
		if a.Write && r.Header.Get("Authorization") != "signed" {
			return api.Errorf(api.CodeUnauthorized, "not signed")
		}
		return nil
	}
	reg, err := registry.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(reg)
	t.Cleanup(func() {
		s.Close()
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	return reg, s
}

// signing is a RoundTripper that signs, as package reqauth's does.
type signing struct{ base *http.Transport }

func (s signing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "signed")
	return s.base.RoundTrip(r)
}

func testRemote(t *testing.T, s *httptest.Server) *Remote {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &Remote{Registry: s.Listener.Addr().String(), PlainHTTP: true, Transport: signing{tr}}
}

func TestPushAndPullThroughTheRegistry(t *testing.T) {
	_, s := serve(t)
	r := testRemote(t, s)
	var last, total int64
	r.Progress = func(d, n int64) {
		if d < last {
			t.Errorf("progress went from %d back to %d", last, d)
		}
		last, total = d, n
	}
	dir := t.TempDir()
	tree(t, dir, map[string]string{"f": strings.Repeat("x", 100_000)})
	b := testBuilder(t, dir)
	b.Pull = r
	img := mustBuild(t, b, Build{From: "scratch", Copy: []Copy{{Src: "f", Dst: "/f"}}})
	d, err := r.Push(t.Context(), "team/hello", "v1", img.Image)
	if err != nil || d != digestOf(t, img) {
		t.Fatal(d, err)
	}
	if total == 0 || last != total {
		t.Fatalf("progress ended at %d of %d", last, total)
	}
	for _, ref := range []string{"/team/hello:v1", "/team/hello@" + d} {
		got, err := r.Pull(t.Context(), r.Registry+ref, b.Arch)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(got); err != nil {
			t.Fatal(err)
		}
	}
	derived := mustBuild(t, b, Build{From: r.Registry + "/team/hello:v1", Cmd: []string{"x"}})
	if n := len(must(derived.Layers())); n != 2 {
		t.Fatalf("%d layers", n)
	}
	_, err = r.Pull(t.Context(), r.Registry+"/team/none:v1", b.Arch)
	if api.CodeOf(err) != api.CodeNotFound {
		t.Fatal(err)
	}
}

func TestRegistryIsNeverMistakenForDockerHub(t *testing.T) {
	for _, host := range []string{"gateway", "localhost", "gateway:8080", "a.b"} {
		ref, err := (&Remote{Registry: host}).ref("team/hello", "v1")
		if err != nil || ref.Context().RegistryStr() != host || ref.Context().RepositoryStr() != "team/hello" {
			t.Errorf("%s: %v, %v", host, ref, err)
		}
	}
	for _, bad := range [][3]string{{"", "x", "v1"}, {"h:1", "", "v1"}, {"h:1", "../x", "v1"}, {"h:1", "/x", "v1"}, {"h:1", "x", "a b"}, {"h:1", "x", ""},
		{"h:1/x", "x", "v1"}, {"h:1", "x@sha256:0", "v1"}} {
		if _, err := (&Remote{Registry: bad[0]}).ref(bad[1], bad[2]); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestUnsignedPushIsRefusedWithACode(t *testing.T) {
	_, s := serve(t)
	r := testRemote(t, s)
	r.Transport = r.Transport.(signing).base
	r.Progress = func(int64, int64) {}
	img, err := random.Image(10, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Push(t.Context(), "x", "v1", img)
	if api.CodeOf(err) != api.CodeUnauthorized {
		t.Fatal(err)
	}
	for _, bad := range []string{"UPPER", "a//b", "a b", ""} {
		if _, err := r.Push(t.Context(), bad, "v1", img); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err = r.Push(ctx, "x", "v1", img); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatal(err)
	}
}

func TestBundleBlobSurvivesCollectionAndIsVerified(t *testing.T) {
	reg, s := serve(t)
	r := testRemote(t, s)
	content := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{2}).Read(content)
	d, err := r.PushBlob(t.Context(), "bundles/openfaas-fn/hello", bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.PushBlob(t.Context(), "bundles/openfaas-fn/hello", bytes.NewReader(content), int64(len(content))); err != nil || again != d {
		t.Fatal(again, err)
	}
	if _, err := reg.Collect(t.Context(), -time.Hour); err != nil {
		t.Fatal(err)
	}
	blobs := NewBlobs(s.URL+"/", s.Client())
	body, err := blobs.Fetch(t.Context(), "bundles/openfaas-fn/hello", d)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	got, err := io.ReadAll(body)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes: %v", len(got), err)
	}
	if _, err := r.PushBlob(t.Context(), "x", bytes.NewReader(content), int64(len(content))+1); err == nil {
		t.Fatal("pushed more than there is")
	}
	_, err = blobs.Fetch(t.Context(), "x", "sha256:"+strings.Repeat("0", 64))
	if api.CodeOf(err) != api.CodeNotFound {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "sha256:x", "../../etc", "sha512:" + strings.Repeat("0", 128)} {
		if _, err := blobs.Fetch(t.Context(), "x", bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestLyingRegistryIsNoticed(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"other content": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "evil") },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "good")
		},
		"nothing": func(http.ResponseWriter, *http.Request) {},
	} {
		s := httptest.NewServer(h)
		body, err := NewBlobs(s.URL, s.Client()).Fetch(t.Context(), "x", "sha256:"+strings.Repeat("a", 64))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(body); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: accepted: %v", name, err)
		}
		if _, err := body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: the error does not stay", name)
		}
		body.Close()
		s.Close()
	}
}
