package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, leakOptions()...) }

// leakOptions names what fasthttp leaves running for a while by design.
func leakOptions() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"), // the test upstream, half a second after an error
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*HostClient).connsCleaner"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
	}
}

// world is a gateway that relays every request to one upstream.
type world struct {
	t       *testing.T
	gateway string
	up      *Upstream
	until   time.Duration
	limit   int64
	ln      net.Listener // of the gateway; nil for one on TCP
	ours    bool         // callers are
	callers Callers

	began    atomic.Int64 // exchanges that reached the upstream
	finished atomic.Int64 // of these, ended
	lastErr  failure      // of done
	sendErr  failure      // of Post
}

// failure is the last error of a kind.
type failure struct {
	mu  sync.Mutex
	err error
}

func (f *failure) set(err error) { f.mu.Lock(); defer f.mu.Unlock(); f.err = err }
func (f *failure) get() error    { f.mu.Lock(); defer f.mu.Unlock(); return f.err }

// newWorld starts upstream on a unix socket, and a gateway before it.
func newWorld(t *testing.T, upstream http.HandlerFunc, change ...func(*world)) *world {
	t.Helper()
	w := &world{t: t, until: 30 * time.Second}
	for _, f := range change {
		f(w)
	}
	sock := filepath.Join(t.TempDir(), "up.sock")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	us := &http.Server{Handler: upstream}
	go us.Serve(ln)
	life, end := context.WithCancel(context.Background())
	o := DefaultOptions()
	o.Fields = append(o.Fields, "x-kept")
	w.up = NewUpstream(life, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}, o)
	gln := w.ln
	if gln == nil {
		if gln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	w.gateway = gln.Addr().String()
	gs := &fasthttp.Server{
		Handler: w.handle, StreamRequestBody: true, MaxRequestBodySize: 8 << 10, ReadTimeout: 15 * time.Second,
		WriteTimeout: 15 * time.Second, ReduceMemoryUsage: true, CloseOnShutdown: true, Logger: discard{}, DisablePreParseMultipartForm: true,
	}
	go gs.Serve(gln)
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := gs.ShutdownWithContext(ctx); err != nil {
			t.Errorf("gateway does not end: %v", err)
		}
		end()
		w.up.Close()
		us.Close()
	})
	return w
}

type discard struct{}

func (discard) Printf(string, ...any) {}

func (w *world) handle(ctx *fasthttp.RequestCtx) {
	body, err := ReadBody(ctx, w.limit)
	if err != nil {
		ctx.Error(err.Error(), fasthttp.StatusBadRequest)
		ctx.SetConnectionClose() // after Error, which resets it
		return
	}
	if w.ours {
		body.WatchOurs(ctx, &w.callers)
	} else {
		body.Watch(ctx, &w.callers)
	}
	reply, err := w.up.Post(time.Now().Add(w.until), string(ctx.Path()), body, Header{Name: "Content-Type", Value: "application/x"})
	if err != nil {
		w.sendErr.set(err)
		body.Release()
		ctx.Error(err.Error(), fasthttp.StatusBadGateway)
		ctx.SetConnectionClose()
		return
	}
	w.began.Add(1)
	err = reply.SendTo(ctx, func(err error) {
		if err != nil {
			w.lastErr.set(err)
		}
		w.finished.Add(1)
	}, "X-Kept")
	if err != nil {
		ctx.Error(err.Error(), fasthttp.StatusBadGateway)
	}
}

// settled waits until every exchange that began has ended.
func (w *world) settled() {
	w.t.Helper()
	eventually(w.t, "all exchanges end", func() bool { return w.began.Load() == w.finished.Load() })
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func (w *world) post(body io.Reader) (int, []byte) {
	w.t.Helper()
	resp, err := http.Post("http://"+w.gateway+"/x", "application/x", body)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, b
}

func echo(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	w.Header().Set("X-Kept", "yes")
	io.Copy(w, r.Body)
}

func TestBodiesOfEverySizePassUnchanged(t *testing.T) {
	w := newWorld(t, echo)
	for _, size := range []int{0, 1, 8 << 10, 8<<10 + 1, SmallBody - 1, SmallBody, SmallBody + 1, 3 << 20} {
		for _, known := range []bool{true, false} {
			want := make([]byte, size)
			rand.Read(want)
			var body io.Reader = bytes.NewReader(want)
			if !known {
				body = struct{ io.Reader }{body}
			}
			status, got := w.post(body)
			if status != 200 || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, length known %t: status %d, %d bytes, equal %t", size, known, status, len(got), bytes.Equal(got, want))
			}
		}
	}
	w.settled()
}

func TestConnectionServesManySmallRequests(t *testing.T) {
	w := newWorld(t, echo)
	c, err := net.Dial("tcp", w.gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req := "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
	if _, err := io.WriteString(c, strings.Repeat(req, 20)); err != nil {
		t.Fatal(err)
	}
	got := readFor(t, c, func(s string) bool { return strings.Count(s, "hello") == 20 })
	if n := strings.Count(got, "HTTP/1.1 200"); n != 20 {
		t.Fatalf("%d replies on one connection, want 20", n)
	}
	w.settled()
}

// readFor reads until enough holds, or fails after a while.
func readFor(t *testing.T, c net.Conn, enough func(string) bool) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	buf := make([]byte, 32<<10)
	for !enough(all.String()) {
		n, err := c.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			return all.String()
		}
	}
	return all.String()
}

func TestReplyFlowsWhileTheBodyIsStillSent(t *testing.T) {
	w := newWorld(t, echo)
	pr, pw := io.Pipe()
	defer pw.Close()
	go pw.Write(bytes.Repeat([]byte("a"), SmallBody+1))
	resp, err := http.Post("http://"+w.gateway+"/x", "application/x", pr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, SmallBody)); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		piece := bytes.Repeat([]byte{byte('b' + i)}, 64<<10)
		if _, err := pw.Write(piece); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(piece))
		if _, err := io.ReadFull(resp.Body, got); err != nil {
			t.Fatalf("piece %d: %v", i, err)
		}
	}
	pw.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	w.settled()
}

func TestCutBodyReachesNobody(t *testing.T) {
	w := newWorld(t, func(http.ResponseWriter, *http.Request) { t.Error("upstream was asked") })
	c, err := net.Dial("tcp", w.gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n%s", strings.Repeat("x", 20000))
	c.(*net.TCPConn).CloseWrite()
	if got := readFor(t, c, func(s string) bool { return strings.Contains(s, "ended early") }); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Fatalf("got %q", got)
	}
}

func TestBodyOverTheLimitIsRefused(t *testing.T) {
	var read atomic.Int64
	w := newWorld(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		read.Add(n)
	}, func(w *world) { w.limit = 1 << 20 })
	resp, err := http.Post("http://"+w.gateway+"/x", "application/x", bytes.NewReader(make([]byte, 1<<20+1)))
	if err == nil { // this gateway does not linger, so the refusal may be lost
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 400 || !strings.Contains(string(b), "too_large") {
			t.Errorf("announced: %d %s", resp.StatusCode, b)
		}
	}
	if n := w.began.Load(); n != 0 {
		t.Errorf("%d announced bodies over the limit reached the upstream", n)
	}
	// Without a length it shows in the middle, and what came is no whole body.
	resp, err = http.Post("http://"+w.gateway+"/x", "application/x", struct{ io.Reader }{bytes.NewReader(make([]byte, 4<<20))})
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode == 200 {
			t.Error("a body over the limit was answered with 200")
		}
	}
	if read.Load() > 1<<20 {
		t.Errorf("upstream read %d bytes", read.Load())
	}
	w.settled()
}

func TestBodiesWithoutALengthKeepToALimitOfAnySize(t *testing.T) {
	for _, limit := range []int{1000, SmallBody - 1, SmallBody, SmallBody + 1} {
		w := newWorld(t, echo, func(w *world) { w.limit = int64(limit) })
		send := func(size int) int {
			resp, err := http.Post("http://"+w.gateway+"/x", "application/x", struct{ io.Reader }{bytes.NewReader(make([]byte, size))})
			if err != nil { // this gateway does not linger, so a refusal may be lost
				return 0
			}
			defer resp.Body.Close()
			if n, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode == 200 && n != int64(size) {
				return 0
			}
			return resp.StatusCode
		}
		if code := send(limit); code != 200 {
			t.Errorf("limit %d: a body of just that was answered with %d", limit, code)
		}
		for _, more := range []int{1, 10, 1 << 20} {
			if code := send(limit + more); code == 200 {
				t.Errorf("limit %d: a body of %d bytes more was answered with 200", limit, more)
			}
		}
		w.settled()
	}
}

func TestSilentUpstreamEndsAtTheDeadline(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-release
	}, func(w *world) { w.until = time.Second })
	for _, size := range []int{10, SmallBody + 1} {
		status, _ := w.post(bytes.NewReader(make([]byte, size)))
		err := w.sendErr.get()
		if status != 502 || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNotSent) {
			t.Errorf("%d bytes: status %d, error %v", size, status, err)
		}
	}
}

func TestReplyThatStallsIsCutAtTheDeadline(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	w := newWorld(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write([]byte("begin"))
		w.(http.Flusher).Flush()
		<-release
	}, func(w *world) { w.until = time.Second })
	for _, size := range []int{10, SmallBody + 1} {
		resp, err := http.Post("http://"+w.gateway+"/x", "application/x", bytes.NewReader(make([]byte, size)))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil {
			t.Errorf("%d bytes: a cut reply looks whole: %q", size, b)
		}
		w.settled()
		if w.lastErr.get() == nil {
			t.Error("nobody was told")
		}
	}
}

func TestUpstreamThatBreaksInTheMiddleIsNotAWholeReply(t *testing.T) {
	for name, hijack := range map[string]string{
		"fixed length": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"chunked":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"no header":    "",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				c, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(c, hijack)
				c.Close()
			})
			resp, err := http.Post("http://"+w.gateway+"/x", "application/x", strings.NewReader("x"))
			if err != nil { // not even the header came through: as good
				w.settled()
				return
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if hijack == "" {
				if serr := w.sendErr.get(); resp.StatusCode != 502 || serr == nil || errors.Is(serr, ErrNotSent) {
					t.Errorf("status %d, error %v", resp.StatusCode, serr)
				}
			} else if err == nil && resp.StatusCode != 502 { // a small reply is held until it is whole
				t.Errorf("a cut reply looks whole: %d %q", resp.StatusCode, b)
			}
			w.settled()
		})
	}
}

func TestEarlyRefusalIsHeardByTheUploader(t *testing.T) {
	w := newWorld(t, echo)
	sock := filepath.Join(t.TempDir(), "early.sock")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
			c.Close() // with most of the body unread
		}
	}()
	w.up = NewUpstream(context.Background(), func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}, DefaultOptions())
	for i := range 30 {
		resp, err := http.Post("http://"+w.gateway+"/x", "application/x", bytes.NewReader(make([]byte, 1<<20)))
		if err != nil {
			continue // this test's own client gave up its upload: the gateway does not linger here
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 413 || err == nil && string(b) != "big" {
			t.Fatalf("try %d: %d %q %v; the gateway saw %v", i, resp.StatusCode, b, err, w.sendErr.get())
		}
	}
	if err := w.sendErr.get(); err != nil {
		t.Error(err)
	}
	w.settled()
}

func TestUnreachableUpstreamLeavesTheBodyForAnother(t *testing.T) {
	w := newWorld(t, echo)
	good := w.up
	bad := NewUpstream(context.Background(), func(context.Context) (net.Conn, error) { return nil, errors.New("refused") }, DefaultOptions())
	defer bad.Close()
	w.up = bad
	for _, size := range []int{10, SmallBody + 1} {
		w.sendErr.set(nil)
		// The gateway may close before it has read all: its answer is not what counts here.
		if resp, err := http.Post("http://"+w.gateway+"/x", "application/x", bytes.NewReader(make([]byte, size))); err == nil {
			resp.Body.Close()
		}
		if err := w.sendErr.get(); !errors.Is(err, ErrNotSent) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	w.up = good
}

func TestClientsThatVanishReleaseEverything(t *testing.T) {
	w := newWorld(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		for i := range 1000 {
			if _, err := w.Write(bytes.Repeat([]byte{byte(i)}, 16<<10)); err != nil {
				return
			}
			if _, err := r.Body.Read(make([]byte, 1024)); err != nil && err != io.EOF {
				return
			}
		}
	})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := net.Dial("tcp", w.gateway)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			size := 100 // small: all sent
			if i%2 == 1 {
				size = 8 << 20 // large: most is never sent
			}
			fmt.Fprintf(c, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", 100))
			if i%2 == 1 {
				io.WriteString(c, strings.Repeat("y", 300<<10))
			}
			io.ReadFull(c, make([]byte, 2000))
		}()
	}
	wg.Wait()
	w.settled()
	if w.began.Load() == 0 {
		t.Error("nothing reached the upstream")
	}
}

func TestLongReplyHeaderFailsAndShortOnePasses(t *testing.T) {
	size := 4 << 10
	w := newWorld(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Kept", strings.Repeat("h", size)) })
	if status, _ := w.post(strings.NewReader("x")); status != 200 {
		t.Errorf("a header of %d bytes: status %d", size, status)
	}
	size = 64 << 10
	if status, _ := w.post(strings.NewReader("x")); status != 502 {
		t.Errorf("a header of %d bytes: status %d", size, status)
	}
}

func TestExpiredDeadlineSendsNothing(t *testing.T) {
	u := NewUpstream(context.Background(), func(context.Context) (net.Conn, error) {
		t.Error("dialled")
		return nil, io.EOF
	}, DefaultOptions())
	if _, err := u.Post(time.Now().Add(-time.Second), "/", Empty()); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// A buffer that went back to the pool belongs to the next request: net/http may
// still be about to read the former one's body.
func TestDetachedBodyIsNotReadAnyMore(t *testing.T) {
	b := &largeBody{head: []byte("secret of the next"), rest: strings.NewReader("")}
	if b.detach() {
		t.Error("touched before anything was read")
	}
	if n, err := b.Read(make([]byte, 10)); n != 0 || err == nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

func TestTooLargeIsACode(t *testing.T) {
	if api.CodeOf(tooLarge(1)) != api.CodeTooLarge {
		t.Error("wrong code")
	}
}
