package coordinator

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// newPlainWorld has a plain function p on n nodes; serve plays the nodes' part.
func newPlainWorld(t *testing.T, n int, serve http.HandlerFunc) *world {
	t.Helper()
	w := newWorld(t, n)
	w.c.dep.Resolver = &fixedImages{digest: "sha256:" + strings.Repeat("a", 64)}
	if _, err := w.c.PutPlain(t.Context(), "p.openfaas-fn", api.Plain{Image: "img", Env: map[string]string{"exec_timeout": "1s"}}); err != nil {
		t.Fatal(err)
	}
	for _, node := range w.nodes {
		node.on(&node.other, serve)
	}
	return w
}

// plainReply is a function's reply as a node passes it on.
func plainReply(rw http.ResponseWriter, status int, body string) {
	rw.Header().Set(api.HeaderServedBy, "node-1")
	rw.Header().Set(api.HeaderStart, "warm")
	rw.WriteHeader(status)
	io.WriteString(rw, body)
}

func (w *world) open(t *testing.T, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := w.http.Do(req)
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

func TestAPlainCallIsPassedOnAsItIs(t *testing.T) {
	w := newPlainWorld(t, 1, func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		start, err := strconv.ParseInt(r.Header.Get(api.HeaderStartTime), 10, 64)
		ok := err == nil && time.Since(time.Unix(0, start)) < time.Minute && strings.HasPrefix(r.URL.Path, api.NodePathPlain+"p.openfaas-fn") &&
			r.Header.Get(api.HeaderTarget) == "/a%2Fb/../c?x=1" && r.Header.Get(api.HeaderCallID) == "mine" && r.Header.Get("X-Forwarded-For") == "9.9.9.9, 127.0.0.1" &&
			r.Header.Get(api.HeaderForwardedHost) == "example.org" && r.Header.Get("Authorization") == "Bearer its-own" && r.Header.Get(api.HeaderNeeds) == "" && r.Method == "PATCH"
		if !ok {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		rw.Header().Set("X-Function", "yes")
		rw.Header().Set(api.HeaderCallID, "forged")
		rw.Header().Set(api.HeaderInternal, "forged")
		rw.Header().Set("X-Faasd-Sec-Odd", "1")
		plainReply(rw, 201, "got "+string(b))
	})
	resp, body := w.open(t, "PATCH", "/function/p/a%2Fb/../c?x=1", "body", api.HeaderCallID, "mine", "X-Forwarded-For", "9.9.9.9", "X-Forwarded-Host", "example.org",
		"Authorization", "Bearer its-own", api.HeaderNeeds, `{"resources":{}}`)
	h := resp.Header
	if resp.StatusCode != 201 || body != "got body" || h.Get("X-Function") != "yes" || h.Get(api.HeaderCallID) != "mine" || h.Get(api.HeaderInternal) != "" ||
		h.Get("X-Faasd-Sec-Odd") != "" || h.Get(api.HeaderServedBy) != "node-1" || h.Get(api.HeaderDuration) == "" || h.Get(api.HeaderStartTime) == "" {
		t.Errorf("%d %q %v", resp.StatusCode, body, h)
	}
	if n := w.c.callsOf("p.openfaas-fn").Load(); n != 1 {
		t.Errorf("%d calls are counted", n)
	}
}

// Whoever stands before a coordinator admits by the path as it reads it: two readings
// of one request must not be two functions.
func TestAPathIsOneFunctionsOrRefused(t *testing.T) {
	var target atomic.Value
	w := newPlainWorld(t, 1, func(rw http.ResponseWriter, r *http.Request) {
		target.Store(r.Header.Get(api.HeaderTarget))
		plainReply(rw, 200, "")
	})
	for path, want := range map[string]string{
		"/function/p/a/../b": "/a/../b", "//function/p/a": "/a", "/function/p/\xc3\xa9?\xc3": "/%C3%A9?%C3", "/function/p#/x": "/",
		"http://elsewhere/function/p/a": "/a", "http://elsewhere/function/p/a?u=http://x/function/q": "/a?u=http://x/function/q",
		"/function/q/../p": "", "/function/p/../q": "", "/function/p/..%2fq": "", "/function%2fq?/function/p": "", "/x/../function%2Fp": "", "http://x/%66unction/q?/function/p": "",
	} {
		target.Store("")
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nX Odd: 1\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		resp.Body.Close()
		conn.Close()
		if got := target.Load(); got != want || (resp.StatusCode == 200) != (want != "") || resp.StatusCode >= 500 {
			t.Errorf("%s: %d, the function was asked for %q", path, resp.StatusCode, got)
		}
	}
}

func TestThePlatformsAnswersToPlainCallsAreMarked(t *testing.T) {
	var answer http.HandlerFunc
	w := newPlainWorld(t, 1, func(rw http.ResponseWriter, r *http.Request) { answer(rw, r) })
	w.c.cfg.QueueTimeout = 100 * time.Millisecond
	own := func(code api.Code) http.HandlerFunc { // as an agent answers for itself
		return func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set(api.HeaderFunctionErr, string(code))
			plainReply(rw, (&api.Error{Code: code}).Status(), "{}")
		}
	}
	for _, c := range []struct {
		what, method, path string
		answer             http.HandlerFunc
		status             int
		internal           bool
	}{
		{"no such function", "GET", "/function/none/x", nil, 404, true},
		{"method", "TRACE", "/function/p", nil, 405, true},
		{"full sandbox", "GET", "/function/p", own(api.CodeBusy), 429, true},
		{"exec_timeout", "POST", "/function/p", own(api.CodeDeadline), 504, true},
		{"no room", "POST", "/function/p", refuses(api.CodeNoRoom), 503, true},
		{"function that ends at once", "POST", "/function/p", refuses(api.CodeFunctionCrashed), 503, true},
		{"secret that is gone", "POST", "/function/p", refuses(api.CodeNotFound), 503, true},
		{"node that dies", "POST", "/function/p", breaks, 502, true},
		{"node that dies, of what could be sent again", "GET", "/function/p", breaks, 502, true},
		{"the function's own error", "GET", "/function/p", func(rw http.ResponseWriter, _ *http.Request) { plainReply(rw, 503, "mine") }, 503, false},
		{"sealed, with a path", "GET", "/function/f.ns/x", nil, 415, true},
		{"another function in the query", "GET", "/%66unction/none?x=/function/p", nil, 400, true},
		{"another function behind dots", "GET", "/function/p/../none", nil, 400, true},
		{"a name that is encoded", "GET", "/function/%70", nil, 400, true},
	} {
		answer = c.answer
		resp, body := w.open(t, c.method, c.path, "")
		if resp.StatusCode != c.status || (resp.Header.Get(api.HeaderInternal) != "") != c.internal || resp.Header.Get(api.HeaderCallID) == "" {
			t.Errorf("%s: %d %v %s", c.what, resp.StatusCode, resp.Header, body)
		}
	}
}

func TestANodeThatDoesNotKnowAPlainFunctionIsTold(t *testing.T) {
	known := false
	w := newPlainWorld(t, 1, func(rw http.ResponseWriter, r *http.Request) {
		if !known {
			known = true
			refuses(api.CodeUnknownRevision)(rw, r)
			return
		}
		plainReply(rw, 200, "")
	})
	w.eventually("the announcement is over", func() bool { return w.nodes["node-1"].told.Load() == 1 })
	told := w.nodes["node-1"].told.Load()
	if resp, body := w.open(t, "GET", "/function/p", ""); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if n := w.nodes["node-1"].told.Load(); n != told+1 {
		t.Errorf("told %d times after %d", n, told)
	}
}
