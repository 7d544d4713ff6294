package registry

import (
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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
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
	return serveFast(t, &fasthttp.Server{Handler: r.ServeFastHTTP, StreamRequestBody: true, MaxRequestBodySize: 1 << 20, CloseOnShutdown: true})
}

func serveFast(t *testing.T, s *fasthttp.Server) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Logger = slog.NewLogLogger(slog.NewTextHandler(t.Output(), nil), slog.LevelWarn)
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
