package registry

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// fasthttp's pool cleaner notices the end of its server up to 10 s late.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		// One ticker for the Date header per process, without an end.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

func testConfig(t *testing.T, dir string) Config {
	t.Helper()
	c := DefaultConfig(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	c.Authorize, c.MinFreeBytes = AllowAll, 0
	return c
}

func openRegistry(t *testing.T, c Config) *Registry {
	t.Helper()
	r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return r
}

// front is a way to serve a registry.
type front struct {
	name  string
	serve func(t *testing.T, r *Registry) (addr string)
}

var fronts = []front{{"nethttp", serveNetHTTP}, {"fasthttp", serveFastHTTP}}

func serveNetHTTP(t *testing.T, r *Registry) string {
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func serveFastHTTP(t *testing.T, r *Registry) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &fasthttp.Server{Handler: r.ServeFastHTTP, StreamRequestBody: true, MaxRequestBodySize: 1 << 20, CloseOnShutdown: true,
		Logger: slog.NewLogLogger(slog.NewTextHandler(t.Output(), nil), slog.LevelWarn)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// client makes an HTTP client whose connections end with the test.
func client(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func onFronts(t *testing.T, f func(t *testing.T, fr front)) {
	for _, fr := range fronts {
		t.Run(fr.name, func(t *testing.T) { f(t, fr) })
	}
}

func ref(t *testing.T, addr, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(addr+"/"+s, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func options(t *testing.T) []remote.Option {
	return []remote.Option{remote.WithTransport(client(t).Transport), remote.WithContext(t.Context())}
}

func TestPushedImageIsPulledWholeAlsoAfterARestart(t *testing.T) {
	onFronts(t, func(t *testing.T, fr front) {
		cfg := testConfig(t, t.TempDir())
		img, err := random.Image(200_000, 3)
		if err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		var addr string
		t.Run("push", func(t *testing.T) { // its clean-up stops server and registry
			r := openRegistry(t, cfg)
			addr = fr.serve(t, r)
			if err := remote.Write(ref(t, addr, "team/hello:v1"), img, options(t)...); err != nil {
				t.Fatal(err)
			}
		})
		r := openRegistry(t, cfg)
		addr = fr.serve(t, r)
		for _, s := range []string{"team/hello:v1", "team/hello@" + d.String()} {
			got, err := remote.Image(ref(t, addr, s), options(t)...)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(got); err != nil {
				t.Fatal(err)
			}
			if gd, err := got.Digest(); err != nil || gd != d {
				t.Fatalf("digest %v, want %v: %v", gd, d, err)
			}
		}
		tags, err := remote.List(ref(t, addr, "team/hello").Context(), options(t)...)
		if err != nil || len(tags) != 1 || tags[0] != "v1" {
			t.Fatal(tags, err)
		}
		if _, err := remote.Head(ref(t, addr, "team/other:v1"), options(t)...); err == nil {
			t.Fatal("a manifest is served from a repository it was not pushed to")
		}
	})
}

func TestIndexIsPushedAfterItsImages(t *testing.T) {
	addr := serveNetHTTP(t, openRegistry(t, testConfig(t, t.TempDir())))
	idx, err := random.Index(1000, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref(t, addr, "multi:v1"), idx, options(t)...); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(ref(t, addr, "multi:v1"), options(t)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Fatal(err)
	}
}

// noise is a body of n bytes that is made as it is read.
func noise(n int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), n) }

func noiseDigest(t *testing.T, n int64) digest {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, noise(n)); err != nil {
		t.Fatal(err)
	}
	return digest(h.Sum(nil))
}

func do(t *testing.T, c *http.Client, method, url string, body io.Reader, length int64, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.ContentLength = length
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func wantStatus(t *testing.T, resp *http.Response, status int, code string) {
	t.Helper()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status || !strings.Contains(string(b), code) {
		t.Fatalf("%s %s: got %d %s, want %d %s", resp.Request.Method, resp.Request.URL, resp.StatusCode, b, status, code)
	}
}

func TestLargeLayerGoesBothWaysInFlatMemory(t *testing.T) {
	const size = 50 << 20
	d := noiseDigest(t, size)
	onFronts(t, func(t *testing.T, fr front) {
		addr := fr.serve(t, openRegistry(t, testConfig(t, t.TempDir())))
		c := client(t)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)

		begun := do(t, c, "POST", "http://"+addr+"/v2/big/blobs/uploads/", nil, 0)
		wantStatus(t, begun, http.StatusAccepted, "")
		at := "http://" + addr + begun.Header.Get("Location")
		// Half with a length, the rest of the same stream in chunks, as clients do.
		body := noise(size)
		wantStatus(t, do(t, c, "PATCH", at, io.LimitReader(body, size/2), size/2), http.StatusAccepted, "")
		wantStatus(t, do(t, c, "PATCH", at, body, -1), http.StatusAccepted, "")
		wantStatus(t, do(t, c, "PUT", at+"?digest="+d.String(), nil, 0), http.StatusCreated, "")

		got := do(t, c, "GET", "http://"+addr+"/v2/big/blobs/"+d.String(), nil, 0)
		h := sha256.New()
		if n, err := io.Copy(h, got.Body); err != nil || n != size || got.ContentLength != size {
			t.Fatalf("pulled %d bytes of %d (announced %d): %v", n, size, got.ContentLength, err)
		}
		if digest(h.Sum(nil)) != d {
			t.Fatal("another content came back")
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
			t.Fatalf("%d MiB were allocated to move 100", used>>20)
		}
	})
}

func TestRangesOfABlob(t *testing.T) {
	const size = 1000
	onFronts(t, func(t *testing.T, fr front) {
		addr := fr.serve(t, openRegistry(t, testConfig(t, t.TempDir())))
		c := client(t)
		d := noiseDigest(t, size)
		whole, _ := io.ReadAll(noise(size))
		url := "http://" + addr + "/v2/r/blobs/"
		wantStatus(t, do(t, c, "POST", url+"uploads/?digest="+d.String(), noise(size), size), http.StatusCreated, "")
		for h, want := range map[string][]byte{
			"": whole, "bytes=0-9": whole[:10], "bytes=990-": whole[990:], "bytes=-5": whole[995:], "bytes=500-5000": whole[500:],
			"bytes=0-0": whole[:1], "bytes=-5000": whole, "bytes=5-1": whole, "bytes=0-1,5-6": whole, "items=0-1": whole, "bytes=x-": whole,
		} {
			resp := do(t, c, "GET", url+d.String(), nil, 0, "Range", h)
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%q: %d bytes, want %d: %v", h, len(got), len(want), err)
			}
			if partial := len(want) != size; partial != (resp.StatusCode == http.StatusPartialContent) {
				t.Errorf("%q: status %d", h, resp.StatusCode)
			}
		}
		wantStatus(t, do(t, c, "GET", url+d.String(), nil, 0, "Range", "bytes=1000-"), http.StatusRequestedRangeNotSatisfiable, "")
		head := do(t, c, "HEAD", url+d.String(), nil, 0)
		if head.StatusCode != http.StatusOK || head.ContentLength != size {
			t.Fatal(head.StatusCode, head.ContentLength)
		}
	})
}

func TestWrongDigestsAreRefused(t *testing.T) {
	onFronts(t, func(t *testing.T, fr front) {
		dir := t.TempDir()
		addr := fr.serve(t, openRegistry(t, testConfig(t, dir)))
		c := client(t)
		url := "http://" + addr + "/v2/r/"
		d := noiseDigest(t, 100)
		wantStatus(t, do(t, c, "POST", url+"blobs/uploads/?digest="+d.String(), noise(99), 99), 400, codeDigestInvalid)
		for _, bad := range []string{"sha256:zz", "sha512:" + strings.Repeat("a", 128), "sha256:" + strings.Repeat("A", 64), "x"} {
			wantStatus(t, do(t, c, "POST", url+"blobs/uploads/?digest="+bad, noise(1), 1), 400, codeDigestInvalid)
			wantStatus(t, do(t, c, "GET", url+"blobs/"+bad, nil, 0), 400, codeDigestInvalid)
		}
		wantStatus(t, do(t, c, "GET", url+"blobs/"+d.String(), nil, 0), 404, codeBlobUnknown)
		m := `{"schemaVersion":2}`
		wantStatus(t, do(t, c, "PUT", url+"manifests/"+d.String(), strings.NewReader(m), int64(len(m)), "Content-Type", typeManifest),
			400, codeDigestInvalid)
		if left, _ := filepath.Glob(filepath.Join(dir, "uploads", "*")); len(left) != 0 {
			t.Fatalf("refused uploads left %v", left)
		}
	})
}

func TestManifestsAreCheckedBeforeTheyAreTaken(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.MaxManifestBytes = 10_000
	addr := serveNetHTTP(t, openRegistry(t, cfg))
	c := client(t)
	url := "http://" + addr + "/v2/r/"
	d := noiseDigest(t, 10)
	wantStatus(t, do(t, c, "POST", url+"blobs/uploads/?digest="+d.String(), noise(10), 10), 201, "")
	missing := "sha256:" + strings.Repeat("0", 64)
	desc := func(d string, size int) string {
		return fmt.Sprintf(`{"mediaType":"x/y","digest":%q,"size":%d}`, d, size)
	}
	good := `{"schemaVersion":2,"config":` + desc(d.String(), 10) + `,"layers":[]}`
	for name, m := range map[string]struct{ body, contentType, code string }{
		"good":            {good, typeManifest, ""},
		"no type":         {good, "", codeManifestInvalid},
		"odd type":        {strings.Replace(good, `2,`, `2,"mediaType":"a/b",`, 1), "a/b", codeManifestInvalid},
		"two types":       {strings.Replace(good, `2,`, `2,"mediaType":"`+typeIndex+`",`, 1), typeManifest, codeManifestInvalid},
		"version":         {strings.Replace(good, `:2`, `:1`, 1), typeManifest, codeManifestInvalid},
		"no JSON":         {"{", typeManifest, codeManifestInvalid},
		"no config":       {`{"schemaVersion":2}`, typeManifest, codeManifestInvalid},
		"missing blob":    {`{"schemaVersion":2,"config":` + desc(missing, 10) + `}`, typeManifest, codeManifestBlob},
		"size of a blob":  {`{"schemaVersion":2,"config":` + desc(d.String(), 11) + `}`, typeManifest, codeManifestBlob},
		"digest":          {`{"schemaVersion":2,"config":` + desc("sha256:../x", 10) + `}`, typeManifest, codeManifestInvalid},
		"missing image":   {`{"schemaVersion":2,"manifests":[` + desc(missing, 10) + `]}`, typeIndex, codeManifestUnknown},
		"config in index": {`{"schemaVersion":2,"manifests":[],"config":` + desc(d.String(), 10) + `}`, typeIndex, codeManifestInvalid},
		"too large":       {good + strings.Repeat(" ", 10_000), typeManifest, codeSizeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			status := 400
			switch m.code {
			case "":
				status = 201
			case codeSizeInvalid:
				status = 413
			}
			wantStatus(t, do(t, c, "PUT", url+"manifests/tag", strings.NewReader(m.body), int64(len(m.body)), "Content-Type", m.contentType), status, m.code)
		})
	}
}

func TestBlobOverItsLimitIsRefused(t *testing.T) {
	onFronts(t, func(t *testing.T, fr front) {
		cfg := testConfig(t, t.TempDir())
		cfg.MaxBlobBytes = 1000
		addr := fr.serve(t, openRegistry(t, cfg))
		c := client(t)
		url := "http://" + addr + "/v2/r/blobs/uploads/"
		for _, announced := range []int64{1001, -1} {
			at := do(t, c, "POST", url, nil, 0).Header.Get("Location")
			wantStatus(t, do(t, c, "PATCH", "http://"+addr+at, noise(1001), announced), 413, codeSizeInvalid)
			wantStatus(t, do(t, c, "GET", "http://"+addr+at, nil, 0), 404, codeUploadUnknown)
		}
		at := do(t, c, "POST", url, nil, 0).Header.Get("Location")
		for range 2 {
			wantStatus(t, do(t, c, "PATCH", "http://"+addr+at, noise(500), 500), 202, "")
		}
		wantStatus(t, do(t, c, "PATCH", "http://"+addr+at, noise(1), 1), 413, codeSizeInvalid)
		// The connection, or a new one, goes on serving.
		wantStatus(t, do(t, c, "GET", "http://"+addr+"/v2/", nil, 0), 200, "{}")
	})
}

func TestFullDiskRefusesUploads(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.MinFreeBytes = 1 << 60
	addr := serveNetHTTP(t, openRegistry(t, cfg))
	d := noiseDigest(t, 1)
	wantStatus(t, do(t, client(t), "POST", "http://"+addr+"/v2/r/blobs/uploads/?digest="+d.String(), noise(1), 1), 507, codeDenied)
}

func TestUploadsAreBoundedAndIdleOnesMakeRoom(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	now := time.Now()
	var mu sync.Mutex
	cfg.MaxUploads = 2
	cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	addr := serveNetHTTP(t, openRegistry(t, cfg))
	c := client(t)
	url := "http://" + addr + "/v2/r/blobs/uploads/"
	first := do(t, c, "POST", url, nil, 0)
	wantStatus(t, first, 202, "")
	wantStatus(t, do(t, c, "POST", url, nil, 0), 202, "")
	wantStatus(t, do(t, c, "POST", url, nil, 0), 429, codeTooMany)
	mu.Lock()
	now = now.Add(cfg.UploadIdle + time.Second)
	mu.Unlock()
	wantStatus(t, do(t, c, "POST", url, nil, 0), 202, "")
	wantStatus(t, do(t, c, "PATCH", "http://"+addr+first.Header.Get("Location"), noise(1), 1), 404, codeUploadUnknown)
}

func TestUploadResumesWhereItBroke(t *testing.T) {
	addr := serveNetHTTP(t, openRegistry(t, testConfig(t, t.TempDir())))
	c := client(t)
	d := noiseDigest(t, 100)
	whole, _ := io.ReadAll(noise(100))
	at := "http://" + addr + do(t, c, "POST", "http://"+addr+"/v2/r/blobs/uploads/", nil, 0).Header.Get("Location")
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", at, io.MultiReader(bytes.NewReader(whole[:40]), failing{}))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 100
	if resp, err := c.Do(req); err == nil {
		resp.Body.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if resp := do(t, c, "GET", at, nil, 0); resp.Header.Get("Range") == "0-39" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what arrived before the break is lost")
		}
	}
	wantStatus(t, do(t, c, "PATCH", at, bytes.NewReader(whole[50:]), 50, "Content-Range", "50-99"), 416, codeUploadInvalid)
	wantStatus(t, do(t, c, "PATCH", at, bytes.NewReader(whole[40:]), 60, "Content-Range", "40-99"), 202, "")
	wantStatus(t, do(t, c, "PUT", at+"?digest="+d.String(), nil, 0), 201, "")
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut") }

func TestConcurrentPushesOfTheSameAndOthers(t *testing.T) {
	r := openRegistry(t, testConfig(t, t.TempDir()))
	addr := serveFastHTTP(t, r)
	same, err := random.Image(100_000, 2)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		opts := options(t)
		wg.Go(func() {
			if err := remote.Write(ref(t, addr, "same:v1"), same, opts...); err != nil {
				t.Error(err)
			}
			mine, err := random.Image(50_000, 1)
			if err != nil {
				t.Error(err)
				return
			}
			at := ref(t, addr, fmt.Sprintf("mine-%d:v1", i))
			if err := remote.Write(at, mine, opts...); err != nil {
				t.Error(err)
				return
			}
			if _, err := r.Collect(t.Context(), time.Hour); err != nil {
				t.Error(err)
			}
			got, err := remote.Image(at, opts...)
			if err != nil {
				t.Error(err)
				return
			}
			if err := validate.Image(got); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestPathsCannotLeaveTheRegistry(t *testing.T) {
	dir := t.TempDir()
	addr := serveNetHTTP(t, openRegistry(t, testConfig(t, filepath.Join(dir, "reg"))))
	c := client(t)
	for _, p := range []string{
		"/v2/../x/manifests/t", "/v2/..%2f..%2fx/manifests/t", "/v2/_manifests/manifests/t", "/v2/a/_tags/manifests/t",
		"/v2/a/manifests/..%2f..%2fx", "/v2/a/manifests/.hidden", "/v2/A/manifests/t", "/v2//manifests/t", "/v2/a//b/manifests/t",
		"/v2/" + strings.Repeat("a", 256) + "/manifests/t", "/v2/a/blobs/uploads/..%2f..%2flock", "/v2/_catalog", "/v3/", "/v2x/",
	} {
		for _, method := range []string{"GET", "PUT", "PATCH", "DELETE"} {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+"/", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Opaque = p
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode < 300 || resp.StatusCode >= 500 {
				t.Errorf("%s %s: status %d", method, p, resp.StatusCode)
			}
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Fatalf("something was written outside: %v", entries)
	}
}

func TestAuthorizerDecidesBeforeTheBodyIsRead(t *testing.T) {
	onFronts(t, func(t *testing.T, fr front) {
		cfg := testConfig(t, t.TempDir())
		var mu sync.Mutex
		var seen []Access
		cfg.Authorize = func(req *http.Request, a Access) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, a)
			switch req.Header.Get("Authorization") {
			case "good":
				return nil
			case "known":
				return api.Errorf(api.CodeForbidden, "not yours")
			case "":
				return api.Errorf(api.CodeUnauthorized, "who are you")
			}
			return errors.New("a reason with internals")
		}
		addr := fr.serve(t, openRegistry(t, cfg))
		c := client(t)
		url := "http://" + addr + "/v2/r/blobs/uploads/"
		wantStatus(t, do(t, c, "POST", url, nil, 0), 401, codeUnauthorized)
		wantStatus(t, do(t, c, "POST", url, nil, 0, "Authorization", "known"), 403, "not yours")
		wantStatus(t, do(t, c, "POST", url, nil, 0, "Authorization", "odd"), 403, "access refused")
		at := do(t, c, "POST", url, nil, 0, "Authorization", "good").Header.Get("Location")
		wantStatus(t, do(t, c, "GET", "http://"+addr+at, nil, 0), 401, codeUnauthorized)
		wantStatus(t, do(t, c, "GET", "http://"+addr+"/v2/r/tags/list", nil, 0), 401, codeUnauthorized)
		mu.Lock()
		defer mu.Unlock()
		for i, want := range []Access{{"r", true}, {"r", true}, {"r", true}, {"r", true}, {"r", true}, {"r", false}} {
			if seen[i] != want {
				t.Errorf("request %d: access %+v, want %+v", i, seen[i], want)
			}
		}
	})
	if _, err := Open(DefaultConfig(t.TempDir(), slog.New(slog.DiscardHandler))); api.CodeOf(err) != api.CodeInvalid {
		t.Fatalf("a registry without a decision opened: %v", err)
	}
}

func TestCollectFreesWhatNothingRefersTo(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	skip := time.Duration(0)
	cfg.Now = func() time.Time { return time.Now().Add(skip) }
	r := openRegistry(t, cfg)
	addr := serveNetHTTP(t, r)
	push := func(tag string, base v1.Image) v1.Image {
		layer, err := random.Layer(5000, types.OCILayer)
		if err != nil {
			t.Fatal(err)
		}
		img, err := mutate.AppendLayers(base, layer)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref(t, addr, "r:"+tag), img, options(t)...); err != nil {
			t.Fatal(err)
		}
		return img
	}
	base, err := random.Image(5000, 1)
	if err != nil {
		t.Fatal(err)
	}
	keep, gone := push("keep", base), push("gone", base)
	d, err := gone.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(ref(t, addr, "r@"+d.String()), options(t)...); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref(t, addr, "r:gone"), options(t)...); err == nil {
		t.Fatal("the tag outlived its manifest")
	}
	if freed, err := r.Collect(t.Context(), time.Hour); err != nil || freed != 0 {
		t.Fatal("fresh blobs were swept", freed, err)
	}
	skip = 2 * time.Hour
	freed, err := r.Collect(t.Context(), time.Hour)
	if err != nil || freed < 5000 || freed > 8000 {
		t.Fatalf("freed %d bytes: %v", freed, err)
	}
	got, err := remote.Image(ref(t, addr, "r:keep"), options(t)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Fatal(err)
	}
	if a, _ := got.Digest(); a != must(keep.Digest()) {
		t.Fatal("another image is under the tag")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestSecondProcessIsKeptOut(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	openRegistry(t, cfg)
	if _, err := Open(cfg); api.CodeOf(err) != api.CodeConflict {
		t.Fatal(err)
	}
}

func FuzzRoute(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/blobs/uploads/x", "/v2/a/manifests/t", "/v2/a/tags/list"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		r, ok := parseRoute(p)
		if ok && r.kind != "base" && validName(r.name) {
			if c := filepath.Clean("/repos/" + r.name); c != "/repos/"+r.name {
				t.Fatalf("%q escapes to %q", r.name, c)
			}
		}
	})
}
