package registry

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

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

// slow gives a piece at a time, with a pause before each.
type slow struct {
	r     io.Reader
	piece int
	pause time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(s.pause)
	return s.r.Read(p[:min(len(p), s.piece)])
}

// Servers bound the time of a request by what a header and a small body need.
func TestBlobsMayTakeLongerThanTheServersTimeouts(t *testing.T) {
	const size = 16 << 20 // more than sockets buffer
	const timeout = 400 * time.Millisecond
	r := openRegistry(t, testConfig(t, t.TempDir()))
	addr := serveFast(t, &fasthttp.Server{Handler: r.ServeFastHTTP, StreamRequestBody: true, MaxRequestBodySize: 8 << 10, CloseOnShutdown: true,
		ReadTimeout: timeout, WriteTimeout: timeout})
	d, c := noiseDigest(t, size), client(t)
	c.Timeout = 5 * time.Minute // the pauses are many, and longer on a busy machine
	url := "http://" + addr + "/v2/r/blobs/"
	pushed := do(t, c, "POST", url+"uploads/?digest="+d.String(), &slow{noise(size), 32 << 10, timeout / 100}, size)
	wantStatus(t, pushed, http.StatusCreated, "")
	pulled := do(t, c, "GET", url+d.String(), nil, 0)
	h := sha256.New()
	if n, err := io.Copy(h, &slow{pulled.Body, 32 << 10, timeout / 100}); err != nil || n != size || digest(h.Sum(nil)) != d {
		t.Errorf("pulled %d of %d bytes: %v", n, size, err)
	}
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

// The length of an upload is often not known ahead: the disk must not be filled all
// the same.
func TestUploadThatFillsTheDiskIsBrokenOff(t *testing.T) {
	onFronts(t, func(t *testing.T, fr front) {
		cfg := testConfig(t, t.TempDir())
		cfg.MinFreeBytes = 1 << 30
		r := openRegistry(t, cfg)
		var room atomic.Int64 // of what may be written
		var taken atomic.Int64
		r.free = func() (int64, error) { return cfg.MinFreeBytes + room.Load() - taken.Load(), nil }
		room.Store(3 * lookEvery)
		addr, c := fr.serve(t, r), client(t)
		url := "http://" + addr + "/v2/r/"
		// It fills as it comes: also with what others write.
		fills := func(n int64) io.Reader {
			return io.TeeReader(noise(n), writerFunc(func(p []byte) { taken.Add(int64(len(p))) }))
		}
		const size = 10 * lookEvery
		begun := do(t, c, "POST", url+"blobs/uploads/", nil, 0)
		wantStatus(t, begun, http.StatusAccepted, "")
		at := "http://" + addr + begun.Header.Get("Location")
		req, err := http.NewRequestWithContext(t.Context(), "PATCH", at, fills(size))
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := c.Do(req); err == nil { // the connection may end before the answer is read
			resp.Body.Close()
			if resp.StatusCode != http.StatusInsufficientStorage {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		wantStatus(t, do(t, c, "GET", at, nil, 0), 404, codeUploadUnknown) // and what came is off the disk
		room.Store(-1)
		manifest := `{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[]}`
		wantStatus(t, do(t, c, "PUT", url+"manifests/v1", strings.NewReader(manifest), int64(len(manifest)), "Content-Type", typeIndex), 507, codeDenied)
		taken.Store(0)
		room.Store(lookEvery)
		wantStatus(t, do(t, c, "PUT", url+"manifests/v1", strings.NewReader(manifest), int64(len(manifest)), "Content-Type", typeIndex), 201, "")
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

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

// A large push over a slow line takes longer than an idle one is kept.
func TestUploadThatTookLongIsNotIdleAtItsEnd(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	now := time.Now()
	var mu sync.Mutex
	cfg.MaxUploads = 1
	cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	addr := serveNetHTTP(t, openRegistry(t, cfg))
	const size = 32 << 20 // more than sockets buffer: it is under way when the last of it is sent
	c, d := client(t), noiseDigest(t, size)
	url := "http://" + addr + "/v2/r/blobs/uploads/"
	at := "http://" + addr + do(t, c, "POST", url, nil, 0).Header.Get("Location")
	sent := 0
	slowly := io.TeeReader(noise(size), writerFunc(func(p []byte) {
		if sent += len(p); sent == size {
			mu.Lock()
			defer mu.Unlock()
			now = now.Add(2 * cfg.UploadIdle)
		}
	}))
	wantStatus(t, do(t, c, "PATCH", at, slowly, -1), 202, "")
	wantStatus(t, do(t, c, "POST", url, nil, 0), 429, codeTooMany)
	wantStatus(t, do(t, c, "PUT", at+"?digest="+d.String(), nil, 0), 201, "")
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
