package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted serves connections with f, one after the other, and counts them.
func scripted(t *testing.T, f func(n int, br *bufio.Reader, c net.Conn)) (*Client, func() int) {
	t.Helper()
	ln, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			n++
			i := n
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				f(i, bufio.NewReader(c), c)
			})
		}
	})
	cfg := DefaultConfig()
	cfg.Dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", ln.Addr().String())
	}
	cl := New(cfg)
	t.Cleanup(func() { ln.Close(); cl.Close(); wg.Wait() })
	return cl, func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// readRequest reads one request with a Content-Length and returns its header.
func readRequest(br *bufio.Reader) string {
	var b strings.Builder
	size := 0
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return ""
		}
		b.WriteString(line)
		if v, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			for _, c := range strings.TrimSpace(v) {
				size = size*10 + int(c-'0')
			}
		}
		if line == "\r\n" {
			break
		}
	}
	if _, err := io.CopyN(io.Discard, br, int64(size)); err != nil {
		return ""
	}
	return b.String()
}

func do(t *testing.T, c *Client, r *Request) (*Response, string, error) {
	t.Helper()
	r.Deadline = time.Now().Add(20 * time.Second)
	resp, err := c.Do(t.Context(), r)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(resp)
	err = errors.Join(err, resp.Finish())
	resp.Close()
	return resp, string(b), err
}

func TestRepliesAreReadStrictly(t *testing.T) {
	for name, tc := range map[string]struct {
		reply, want string
		bad         bool
	}{
		"with a length":       {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc", false},
		"in chunks":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nT: v\r\n\r\n", "abcd", false},
		"until the end":       {"HTTP/1.0 200 OK\r\n\r\nabc", "abc", false},
		"after 100 and 103":   {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nLink: a\r\n\r\nHTTP/1.1 204 No\r\n\r\n", "", false},
		"bare newlines":       {"HTTP/1.1 200 OK\nContent-Length: 1\n\na", "a", false},
		"upgrade":             {"HTTP/1.1 101 Switching\r\n\r\n", "", true},
		"two lengths":         {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "", true},
		"length and chunks":   {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", true},
		"gzip coding":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "", true},
		"negative length":     {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "", true},
		"folded header":       {"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "", true},
		"space in a name":     {"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", "", true},
		"NUL in a value":      {"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", "", true},
		"not HTTP":            {"hello\r\n\r\n", "", true},
		"HTTP/2":              {"HTTP/2.0 200 OK\r\n\r\n", "", true},
		"cut head":            {"HTTP/1.1 200 OK\r\nA: ", "", true},
		"cut body":            {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", "", true},
		"cut chunk":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabc", "", true},
		"no last chunk":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "", true},
		"chunk too long":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", "", true},
		"chunk size no hex":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "", true},
		"huge header":         {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 20<<10) + "\r\n\r\n", "", true},
		"too many headers":    {"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 300) + "\r\n", "", true},
		"endless trailer":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("A: b\r\n", 20000) + "\r\n", "", true},
		"nothing at all":      {"", "", true},
		"status of two":       {"HTTP/1.1 20 OK\r\n\r\n", "", true},
		"connection it names": {"HTTP/1.1 200 OK\r\nConnection: close, X\r\nX: 1\r\nContent-Length: 0\r\n\r\n", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := scripted(t, func(_ int, br *bufio.Reader, conn net.Conn) {
				readRequest(br)
				_, _ = io.WriteString(conn, tc.reply)
			})
			resp, body, err := do(t, c, &Request{Method: "POST", Small: []byte("x")})
			if (err != nil) != tc.bad || body != tc.want && !tc.bad {
				t.Fatalf("%q %v", body, err)
			}
			if resp != nil {
				for _, f := range resp.Header {
					if f.Name == "connection" || f.Name == "x" || f.Name == "transfer-encoding" || f.Name == "content-length" {
						t.Errorf("header %s came through", f.Name)
					}
				}
			}
		})
	}
}

func TestRequestHeadersCannotSmuggle(t *testing.T) {
	c, _ := scripted(t, func(_ int, br *bufio.Reader, conn net.Conn) {
		h := readRequest(br)
		_, _ = io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\n"+h)
	})
	_, got, err := do(t, c, &Request{Method: "POST", Path: "/p", Query: "q", Small: []byte("body"), Header: []sealed.Field{
		{Name: "content-length", Value: "1"}, {Name: "transfer-encoding", Value: "chunked"}, {Name: "host", Value: "evil"},
		{Name: "connection", Value: "x-hop"}, {Name: "x-hop", Value: "1"}, {Name: "x-end", Value: "2"}}})
	if want := "POST /p?q HTTP/1.1\r\nHost: 127.0.0.1\r\nx-end: 2\r\nContent-Length: 4\r\n\r\n"; err != nil || got != want {
		t.Errorf("%q %v", got, err)
	}
	for name, r := range map[string]*Request{
		"value":  {Method: "GET", Header: []sealed.Field{{Name: "a", Value: "b\r\nc: d"}}},
		"name":   {Method: "GET", Header: []sealed.Field{{Name: "a: b\r\nc", Value: "d"}}},
		"path":   {Method: "GET", Path: "/ HTTP/1.1\r\nA: b"},
		"query":  {Method: "GET", Query: "a b"},
		"method": {Method: "GET /x"},
		"tunnel": {Method: "CONNECT"},
	} {
		var body *BodyError
		if _, _, err := do(t, c, r); !errors.As(err, &body) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConnectionsAreKeptAndStaleOnesAreNot(t *testing.T) {
	c, conns := scripted(t, func(n int, br *bufio.Reader, conn net.Conn) {
		for i := 0; ; i++ {
			if readRequest(br) == "" {
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")
			if n == 1 && i == 2 {
				return // closes a connection that was promised to stay
			}
		}
	})
	for range 3 {
		if _, body, err := do(t, c, &Request{Method: "POST", Small: []byte("x")}); err != nil || body != "a" {
			t.Fatal(body, err)
		}
	}
	if n := conns(); n != 1 {
		t.Errorf("%d connections for three requests", n)
	}
	for range 3 {
		if _, body, err := do(t, c, &Request{Method: "GET"}); err != nil || body != "a" {
			t.Fatal(body, err)
		}
	}
	if n := conns(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestOfferedConnectionCarriesTheFirstRequest(t *testing.T) {
	c, conns := scripted(t, func(_ int, br *bufio.Reader, c net.Conn) {
		for readRequest(br) != "" {
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	})
	for _, broken := range []bool{false, true} {
		before := conns()
		nc, err := c.cfg.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if broken {
			nc.Close()
		}
		c.Offer(nc)
		for range 2 {
			if _, body, err := do(t, c, &Request{Method: "POST", Path: "/"}); err != nil || body != "ok" {
				t.Fatalf("%q %v", body, err)
			}
		}
		for end := time.Now().Add(20 * time.Second); conns() == before && time.Now().Before(end); {
			time.Sleep(time.Millisecond) // one that was closed is counted when it is accepted
		}
		if n := conns() - before; n != 1 {
			t.Errorf("broken %t: %d connections", broken, n)
		}
	}
	c.Close()
	nc, err := c.cfg.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Offer(nc)
	if _, err := nc.Write([]byte("x")); err == nil {
		t.Error("a closed client keeps what it is offered")
	}
}

func TestPostIsNeverSentTwice(t *testing.T) {
	var mu sync.Mutex
	posts := 0
	c, _ := scripted(t, func(n int, br *bufio.Reader, conn net.Conn) {
		for i := 0; ; i++ {
			h := readRequest(br)
			if h == "" {
				return
			}
			if strings.HasPrefix(h, "POST") {
				mu.Lock()
				posts++
				mu.Unlock()
				return // dies with the request
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 204 No\r\n\r\n")
		}
	})
	if _, _, err := do(t, c, &Request{Method: "GET"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := do(t, c, &Request{Method: "POST", Small: []byte("x")}); err == nil {
		t.Fatal("no error")
	}
	mu.Lock()
	defer mu.Unlock()
	if posts != 1 {
		t.Errorf("posted %d times", posts)
	}
}

func TestDeadlineAndAbortEndAnExchange(t *testing.T) {
	c, _ := scripted(t, func(_ int, br *bufio.Reader, conn net.Conn) {
		readRequest(br)
		_, _ = io.Copy(io.Discard, br)
	})
	r := &Request{Method: "POST", Small: []byte("x"), Deadline: time.Now().Add(50 * time.Millisecond)}
	if _, err := c.Do(t.Context(), r); err == nil {
		t.Error("no error after the deadline")
	}
	r = &Request{Method: "POST", Small: []byte("x"), Deadline: time.Now().Add(time.Minute)}
	time.AfterFunc(20*time.Millisecond, r.Abort)
	if _, err := c.Do(t.Context(), r); err == nil {
		t.Error("no error after Abort")
	}
	r.Abort() // of nothing
}

// cutReader ends in an error after its text.
type cutReader struct{ r io.Reader }

func (c *cutReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err == io.EOF {
		err = errors.New("cut")
	}
	return n, err
}

func TestBodyThatBreaksIsNotTakenForWhole(t *testing.T) {
	whole := make(chan bool, 1)
	c, _ := scripted(t, func(_ int, br *bufio.Reader, conn net.Conn) {
		b, _ := io.ReadAll(br)
		whole <- bytes.HasSuffix(b, []byte("0\r\n\r\n"))
	})
	r := &Request{Method: "POST", Body: &cutReader{strings.NewReader("part")}, Length: -1, Cancel: func() {}, Deadline: time.Now().Add(20 * time.Second)}
	_, err := c.Do(t.Context(), r)
	var body *BodyError
	if !errors.As(err, &body) || body.Err.Error() != "cut" {
		t.Errorf("%v", err)
	}
	if <-whole {
		t.Error("the function got an end")
	}
}

func TestBodyOfAnotherLengthThanSaidIsRefused(t *testing.T) {
	for _, size := range []int{3, 100} {
		c, _ := scripted(t, func(_ int, br *bufio.Reader, conn net.Conn) { _, _ = io.Copy(io.Discard, br) })
		r := &Request{Method: "POST", Body: strings.NewReader(strings.Repeat("x", size)), Length: 10, Deadline: time.Now().Add(20 * time.Second)}
		_, err := c.Do(t.Context(), r)
		var body *BodyError
		if !errors.As(err, &body) {
			t.Errorf("%d bytes instead of 10: %v", size, err)
		}
	}
}

func TestWaitAcceptEndsWithItsProcess(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Dial = func(context.Context) (net.Conn, error) { return nil, errors.New("refused") }
	c := New(cfg)
	done := make(chan struct{})
	time.AfterFunc(10*time.Millisecond, func() { close(done) })
	if err := c.WaitAccept(t.Context(), done); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.WaitAccept(ctx, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

func FuzzReadHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: x\r\n\r\nabc"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		br := bufio.NewReaderSize(bytes.NewReader(b), lineBuffer)
		h, _, err := readHead(br, nil, maxHeaderBytes)
		if err != nil {
			return
		}
		for _, x := range h.fields {
			if !validToken(x.Name) || !validValue(x.Value) || x.Name != strings.ToLower(x.Name) {
				t.Errorf("field %q: %q", x.Name, x.Value)
			}
		}
		if h.chunked {
			_, _ = io.Copy(io.Discard, &chunkReader{br: br})
		}
	})
}
