package relay

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// hop is one hop as it is built in the daemons, with a server behind it that
// costs little itself.
type hop struct {
	up       *Upstream
	dialled  atomic.Int64
	request  *fasthttp.Request
	response *fasthttp.Response
	client   *fasthttp.HostClient
}

func newHop(t testing.TB) *hop {
	t.Helper()
	h := &hop{request: fasthttp.AcquireRequest(), response: fasthttp.AcquireResponse()}
	dir := t.TempDir()
	serve := func(name string, f fasthttp.RequestHandler, stream bool) {
		ln, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		s := &fasthttp.Server{Handler: f, Logger: discard{}, CloseOnShutdown: true, NoDefaultDate: true,
			StreamRequestBody: stream, ReduceMemoryUsage: stream, DisablePreParseMultipartForm: true, MaxRequestBodySize: 64 << 20}
		if stream {
			s.MaxRequestBodySize = 8 << 10
		}
		go s.Serve(ln)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := s.ShutdownWithContext(ctx); err != nil {
				t.Errorf("%s does not end: %v", name, err)
			}
		})
	}
	serve("up", func(ctx *fasthttp.RequestCtx) { ctx.SetBody(ctx.PostBody()) }, false)
	life, end := context.WithCancel(context.Background())
	h.up = NewUpstream(life, func(ctx context.Context) (net.Conn, error) {
		h.dialled.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, "up"))
	}, DefaultOptions())
	var callers Callers
	serve("gw", func(ctx *fasthttp.RequestCtx) {
		body, err := ReadBody(ctx, 0)
		if err != nil {
			ctx.Error(err.Error(), 400)
			return
		}
		body.Watch(ctx, &callers)
		reply, err := h.up.Post(time.Now().Add(10*time.Second), "/x", body, Header{Name: "Content-Type", Value: "application/x"})
		if err != nil {
			body.Release()
			ctx.Error(err.Error(), 502)
			return
		}
		if err := reply.SendTo(ctx, nil); err != nil {
			ctx.Error(err.Error(), 502)
		}
	}, true)
	h.client = &fasthttp.HostClient{Addr: "gw", NoDefaultUserAgentHeader: true,
		Dial: func(string) (net.Conn, error) { return net.Dial("unix", filepath.Join(dir, "gw")) }}
	t.Cleanup(func() {
		h.client.CloseIdleConnections()
		h.up.Close()
		end()
	})
	return h
}

func (h *hop) call(t testing.TB, body []byte) {
	h.request.Reset()
	h.response.Reset()
	h.request.SetRequestURI("http://gw/")
	h.request.Header.SetMethod("POST")
	h.request.SetBodyRaw(body)
	if err := h.client.Do(h.request, h.response); err != nil {
		t.Fatal(err)
	}
	if h.response.StatusCode() != 200 || !bytes.Equal(h.response.Body(), body) {
		t.Fatalf("%d, %d bytes", h.response.StatusCode(), len(h.response.Body()))
	}
}

// bytesPerCall is what the whole process allocates per call, pools warm.
func (h *hop) bytesPerCall(t testing.TB, size int) float64 {
	body := make([]byte, size)
	for range 50 {
		h.call(t, body)
	}
	const n = 200
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		h.call(t, body)
	}
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc-before.TotalAlloc) / n
}

func TestWarmExchangesAllocateNothingThatGrowsWithTheBody(t *testing.T) {
	if raceEnabled {
		t.Skip("pools forget on purpose under the race detector")
	}
	h := newHop(t)
	small, large := h.bytesPerCall(t, 1<<10), h.bytesPerCall(t, 128<<10)
	t.Logf("%.0f bytes per call of 1 KiB, %.0f of 128 KiB", small, large)
	// A collection empties pools, so a buffer may be made anew now and then.
	if large > small+32<<10 {
		t.Errorf("a call of 128 KiB allocates %.0f bytes, one of 1 KiB %.0f", large, small)
	}
}

func TestWarmExchangesShareOneConnection(t *testing.T) {
	h := newHop(t)
	for range 100 {
		h.call(t, []byte("hello"))
	}
	if n := h.dialled.Load(); n != 1 {
		t.Errorf("%d connections for 100 calls, one after the other", n)
	}
}

func BenchmarkHop(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			h, body := newHop(b), make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				h.call(b, body)
			}
		})
	}
}
