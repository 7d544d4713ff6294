package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// passing is a gateway that passes all requests on to a server as they are; done
// counts the exchanges that are over.
func passing(t *testing.T, h http.Handler) (url string, done chan error) {
	t.Helper()
	origin := httptest.NewServer(h)
	t.Cleanup(origin.Close)
	u := NewUpstream(t.Context(), func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", strings.TrimPrefix(origin.URL, "http://"))
	}, DefaultOptions())
	done = make(chan error, 16)
	s := &fasthttp.Server{StreamRequestBody: true, MaxRequestBodySize: 1 << 10, NoDefaultContentType: true, Handler: func(ctx *fasthttp.RequestCtx) {
		body, err := ReadBody(ctx, 0)
		if err != nil {
			ctx.Error(err.Error(), 400)
			return
		}
		r := Request{Method: string(ctx.Method()), Path: string(ctx.RequestURI()), All: true, Headers: Headers(ctx, func(name string) bool { return name != "x-secret" })}
		if ctx.Request.Header.ConnectionUpgrade() {
			r.Upgrade = string(ctx.Request.Header.Peek("Upgrade"))
		}
		reply, err := u.Do(time.Now().Add(10*time.Second), r, body)
		if err == nil {
			err = reply.SendAll(ctx, func(err error) { done <- err }, func(name string) bool { return name != "x-inner" })
		}
		if err != nil {
			ctx.Error(err.Error(), 502)
		}
	}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(ln)
	t.Cleanup(func() { _ = s.Shutdown(); u.Close() })
	return "http://" + ln.Addr().String(), done
}

func TestRepliesPassWithAllTheirHeaders(t *testing.T) {
	url, done := passing(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Set-Cookie", "a=1; Path=/")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Set("X-Inner", "not for you")
		w.Header().Set("X-Seen", r.Header.Get("X-Secret")+r.Header.Get("X-Open")+r.Header.Get("Transfer-Encoding"))
		w.Header().Set("Content-Type", "text/odd")
		if r.URL.Path == "/none" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.WriteHeader(http.StatusTeapot)
		io.Copy(w, r.Body)
	}))
	for _, c := range []struct {
		method, path, body string
		status             int
	}{{"POST", "/x?q=1", "small", 418}, {"PATCH", "/x", strings.Repeat("large", 200_000), 418}, {"GET", "/x", "", 418}, {"DELETE", "/none", "", 204}} {
		req, err := http.NewRequest(c.method, url+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Secret", "s")
		req.Header.Set("X-Open", "o")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || string(b) != c.body {
			t.Errorf("%s %s: %d, %d bytes, %v", c.method, c.path, resp.StatusCode, len(b), err)
		}
		h := resp.Header
		if len(h.Values("Set-Cookie")) != 2 || h.Get("X-Inner") != "" || h.Get("X-Seen") != "o" || h.Get("Content-Type") != "text/odd" || len(h.Values("Date")) != 1 {
			t.Errorf("%s: %v", c.method, h)
		}
		if err := <-done; err != nil {
			t.Errorf("%s: %v", c.method, err)
		}
	}
}

// raw sends a request as no client of ours would, and returns the reply with its body.
func raw(t *testing.T, url, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(conn, request)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestHeadersOfOneConnectionStayThere(t *testing.T) {
	seen := make(chan http.Header, 1)
	url, done := passing(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	for _, size := range []int{0, SmallBody + 1} {
		resp, b := raw(t, url, fmt.Sprintf("POST /x HTTP/1.1\r\nHost: x\r\nConnection: X-Mine, keep-alive\r\nConnection: x-other\r\nX-Mine: 1\r\nX-Other: 2\r\nX-Open: 3\r\n"+
			"X Odd: 4\r\nTE: trailers\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size)))
		if resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, b)
		}
		h := <-seen
		for _, name := range []string{"X-Mine", "X-Other", "Te", "Connection"} {
			if len(h.Values(name)) > 0 {
				t.Errorf("%d bytes: %s came along: %v", size, name, h)
			}
		}
		if h.Get("X-Open") != "3" {
			t.Errorf("%d bytes: %v", size, h)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestHeadThatNoPeerMayGetIsTheCallersFault(t *testing.T) {
	u := NewUpstream(t.Context(), func(ctx context.Context) (net.Conn, error) {
		c, far := net.Pipe()
		context.AfterFunc(t.Context(), func() { far.Close() })
		return c, nil
	}, DefaultOptions())
	t.Cleanup(u.Close)
	for what, r := range map[string]Request{
		"a list of protocols": {Method: "GET", Path: "/x", Upgrade: "chat, other"},
		"a name that is none": {Method: "GET", Path: "/x", Headers: []Header{{Name: "x odd", Value: "1"}}},
	} {
		if _, err := u.Do(time.Now().Add(10*time.Second), r, Empty()); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAHeadReplyHasTheLengthOfAGet(t *testing.T) {
	url, done := passing(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "12345")
		w.WriteHeader(http.StatusOK)
	}))
	resp, err := http.Head(url + "/x")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.ContentLength != 12345 {
		t.Errorf("length %d", resp.ContentLength)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAnUpgradedConnectionEndsWithEitherSide(t *testing.T) {
	leave := make(chan struct{})
	url, done := passing(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: %s\r\nX-Of: origin\r\n\r\nhello\n", r.Header.Get("Upgrade"))
		rw.Flush()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			if line == "leave\n" {
				close(leave)
				return
			}
			fmt.Fprint(rw, "echo "+line)
			rw.Flush()
		}
	}))
	for _, first := range []string{"caller", "origin"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(conn, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: chat/1\r\n\r\n")
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "chat/1" || resp.Header.Get("X-Of") != "origin" {
			t.Fatalf("%+v, %v", resp, err)
		}
		if line, err := br.ReadString('\n'); err != nil || line != "hello\n" {
			t.Fatalf("%q, %v", line, err)
		}
		fmt.Fprint(conn, "one\n")
		if line, err := br.ReadString('\n'); err != nil || line != "echo one\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if first == "origin" {
			fmt.Fprint(conn, "leave\n")
			<-leave
			if _, err := br.ReadString('\n'); err != io.EOF {
				t.Errorf("after the origin left: %v", err)
			}
		}
		conn.Close()
		if err := <-done; err != nil {
			t.Errorf("%s left: %v", first, err)
		}
	}
}
