package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("os/signal.loop"))
}

// served is a server whose handler reads no body unless the path is /read, and
// counts the requests it was given.
func served(t *testing.T) (addr string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	s := Server(func(ctx *fasthttp.RequestCtx) {
		requests.Add(1)
		if string(ctx.Path()) == "/read" {
			b, err := io.ReadAll(ctx.RequestBodyStream())
			if err != nil {
				ctx.SetConnectionClose()
			}
			fmt.Fprintf(ctx, "read %d", len(b))
			return
		}
		ctx.SetBodyString("left it")
	}, slog.New(slog.DiscardHandler))
	ln, err := Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, s, ln, 10*time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String(), requests
}

// talk sends raw bytes and returns all that comes back until the server closes or,
// once there are so many replies, is silent for a while.
func talk(t *testing.T, addr, raw string, replies int) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go io.WriteString(c, raw)
	var out bytes.Buffer
	buf := make([]byte, 64<<10)
	for {
		wait := 20 * time.Second
		if answers(out.String()) >= replies {
			wait = 400 * time.Millisecond
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			return out.String()
		}
	}
}

// answers counts the replies in a text, interim ones aside.
func answers(s string) int { return strings.Count(s, "HTTP/1.1 ") - strings.Count(s, "HTTP/1.1 100") }

const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"

func TestRequestHiddenInABodyIsNeverExecuted(t *testing.T) {
	pad := strings.Repeat("p", 20000)
	chunk := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(s), s) }
	for name, raw := range map[string]string{
		"POST of known length": fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(pad)+len(hidden), pad+hidden),
		"POST, all prefetched": fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
		"POST, 8 KiB before":   fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", 8192+len(hidden), pad[:8192]+hidden),
		"POST in chunks":       "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(hidden),
		"GET in chunks":        "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(hidden),
		"GET of known length":  fmt.Sprintf("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(pad)+len(hidden), pad+hidden),
		"HEAD of known length": fmt.Sprintf("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
		"length and chunks": fmt.Sprintf("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s",
			5+len(hidden), hidden),
		"chunks and length": fmt.Sprintf("POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: %d\r\n\r\n0\r\n\r\n%s",
			5+len(hidden), hidden),
		"two lengths": fmt.Sprintf("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden),
		"expectation": fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n%s", len(pad)+len(hidden), pad+hidden),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, requests := served(t)
			out := talk(t, addr, raw, 1)
			if n := requests.Load(); n > 1 {
				t.Errorf("%d requests were executed", n)
			}
			if n := answers(out); n != 1 {
				t.Errorf("%d replies:\n%s", n, out)
			}
		})
	}
}

func TestRequestsThatFollowAReadBodyAreServed(t *testing.T) {
	addr, requests := served(t)
	body := strings.Repeat("b", 20000)
	raw := fmt.Sprintf("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body) +
		fmt.Sprintf("POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body) +
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + hidden
	out := talk(t, addr, raw, 4)
	if requests.Load() != 4 || strings.Count(out, "read 20000") != 2 || strings.Count(out, "left it") != 2 {
		t.Errorf("%d requests were executed; replies:\n%s", requests.Load(), out)
	}
}

func TestRefusedUploaderStillReadsTheReply(t *testing.T) {
	addr, _ := served(t)
	for range 20 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		const size = 4 << 20
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size)
		// All of it is sent before the reply is looked for, as simple clients do.
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatalf("send: %v", err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("the reply is lost: %v", err)
		}
		resp.Body.Close()
		c.Close()
	}
}

func TestOversizeHeaderEndsTheConnection(t *testing.T) {
	addr, requests := served(t)
	out := talk(t, addr, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("h", 4<<20)+"\r\n\r\n", 1)
	if requests.Load() != 0 || strings.Contains(out, "200 OK") {
		t.Errorf("served: %s", out)
	}
}

func TestGroupTellsOfAMemberThatEnds(t *testing.T) {
	g := NewGroup(context.Background(), slog.New(slog.DiscardHandler))
	boom := errors.New("boom")
	g.Go("fails", func(context.Context) error { return boom })
	g.Go("stays", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	<-g.Failed()
	g.Stop()
	if err := g.Wait(); !errors.Is(err, boom) || strings.Contains(err.Error(), "stays") {
		t.Errorf("got %v", err)
	}
}

func TestMemberThatEndsByItselfIsAFailure(t *testing.T) {
	g := NewGroup(context.Background(), slog.New(slog.DiscardHandler))
	g.Go("quits", func(context.Context) error { return nil })
	<-g.Failed()
	g.Stop()
	if err := g.Wait(); err == nil {
		t.Error("no error")
	}
}

func TestServeLetsRequestsFinish(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	s := Server(func(ctx *fasthttp.RequestCtx) {
		close(begun)
		<-release
		ctx.SetBodyString("done")
	}, slog.New(slog.DiscardHandler))
	ln, err := Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, s, ln, 10*time.Second) }()
	got := make(chan string, 1)
	tr := &http.Transport{DisableKeepAlives: true}
	go func() {
		resp, err := (&http.Client{Transport: tr}).Get("http://" + ln.Addr().String())
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		got <- string(b)
	}()
	<-begun
	cancel()
	select {
	case err := <-ended:
		t.Fatalf("ended before the request did: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	if b := <-got; b != "done" {
		t.Errorf("got %q", b)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSignalEndsTheContext(t *testing.T) {
	ctx, stop := Signals(context.Background())
	defer stop()
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("not told")
	}
}

func TestLoggerRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, c := range [][2]string{{"xml", "info"}, {"json", "loud"}} {
		if _, err := Logger(io.Discard, c[0], c[1]); err == nil {
			t.Errorf("%v: no error", c)
		}
	}
}

func TestOpsEndpointsAnswer(t *testing.T) {
	ready := errors.New("starting")
	h := Ops(Registry(), func() error { return ready })
	get := func(path string) int {
		var ctx fasthttp.RequestCtx
		ctx.Request.SetRequestURI(path)
		h(&ctx)
		return ctx.Response.StatusCode()
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503, "/metrics": 200, "/other": 404} {
		if got := get(path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	ready = nil
	if got := get("/readyz"); got != 200 {
		t.Errorf("/readyz when ready: %d", got)
	}
}

func TestAUnixSocketIsItsOwnersAloneFromItsFirstMoment(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // the worst one
	path := filepath.Join(t.TempDir(), "s")
	ln, err := ListenUnix(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o600 { // nobody has changed it since it was made
		t.Errorf("mode %o", got)
	}
	go func() {
		if c, err := ln.Accept(); err == nil {
			c.Close()
		}
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
