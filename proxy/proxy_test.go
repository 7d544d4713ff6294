package proxy_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
	"github.com/faasd-sec/faasd-sec/proxy"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestPlainRequestIsSealedAndItsReplyOpened(t *testing.T) {
	w := start(t, nil, "")
	var seen bytes.Buffer
	w.cluster.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		fmt.Fprint(&seen, r.URL, r.Header)
		b, _ := io.ReadAll(r.Body)
		seen.Write(b)
		r.Body = io.NopCloser(bytes.NewReader(b))
		return false
	}
	res := w.do("PUT", "/function/echo/confidential/a%2Fb?q=confidential", strings.NewReader("confidential body"),
		"X-Key", "confidential-header", "Authorization", "Bearer functions-own", "X-Call-Id", "call-7", "Connection", "X-Hop", "X-Hop", "here")
	if got := read(t, res); got != "confidential body" || res.StatusCode != 201 {
		t.Errorf("%d %q", res.StatusCode, got)
	}
	if got := res.Header.Get("X-Line"); got != "PUT /confidential/a%2Fb?q=confidential" {
		t.Errorf("the function saw %q", got)
	}
	h := res.Header
	if h.Get("Echo-X-Key") != "confidential-header" || h.Get("Echo-Authorization") != "Bearer functions-own" {
		t.Errorf("headers are lost: %v", h)
	}
	for _, name := range []string{"Echo-Connection", "Echo-X-Hop", "Echo-Host", "Echo-X-Call-Id", "Echo-Content-Length"} {
		if h.Get(name) != "" {
			t.Errorf("the function saw %s: %q", name, h.Get(name))
		}
	}
	if h.Get("X-Served-By") != "n1" || h.Get("X-Call-Id") != "call-7" {
		t.Errorf("%v", h)
	}
	if strings.Contains(seen.String(), "confidential") || strings.Contains(seen.String(), "functions-own") {
		t.Errorf("the gateway saw plaintext: %.200q", seen.String())
	}
	if strings.Contains(w.log.String(), "confidential") {
		t.Errorf("the log holds plaintext: %s", w.log.String())
	}
	if w.counted("faasd_sec_proxy_requests_total", "ok", "all") != 1 || w.counted("faasd_sec_proxy_in_flight") != 0 {
		t.Error("the request was not counted")
	}
}

func TestBodiesOfEverySizeAndMethodComeBack(t *testing.T) {
	w := start(t, nil, "")
	for _, n := range []int{0, 1, 64<<10 + 1, 256 << 10, 256<<10 + 1, 3 << 20} {
		want := bytes.Repeat([]byte("x"), n)
		for _, known := range []bool{true, false} {
			var body io.Reader = bytes.NewReader(want)
			if !known {
				body = struct{ io.Reader }{body}
			}
			if got := read(t, w.do("POST", "/function/echo", body)); got != string(want) {
				t.Errorf("%d bytes, length known %v: %d came back", n, known, len(got))
			}
		}
	}
	res := w.do("GET", "/function/echo.openfaas-fn", nil)
	if read(t, res) != "" || res.Header.Get("X-Line") != "GET ?" {
		t.Errorf("GET: %v", res.Header)
	}
	for range 2 { // on one connection, where nothing may lie before the second reply
		res = w.do("HEAD", "/function/echo/", nil)
	}
	if res.StatusCode != 201 || res.Header.Get("X-Line") != "HEAD /?" {
		t.Errorf("HEAD: %d %v", res.StatusCode, res.Header)
	}
}

// An event reaches the caller while the function has not written the next.
func TestEventsAreHandedOnAsTheyCome(t *testing.T) {
	w := start(t, nil, "")
	next := make(chan struct{}, 1)
	next <- struct{}{} // a sealed head comes with the first event
	w.cluster.Handler = func(sealed.RequestHead, io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
		return sealed.ReplyHead{Status: 200, Header: []sealed.Field{{Name: "content-type", Value: "text/event-stream"}}}, func(out io.Writer) error {
			for i := range 3 {
				<-next
				if _, err := fmt.Fprintf(out, "data: %d\n\n", i); err != nil {
					return err
				}
			}
			return nil
		}
	}
	res := w.do("GET", "/function/echo/events", nil)
	if res.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%v", res.Header)
	}
	r := bufio.NewReader(res.Body)
	for i := range 3 {
		if i > 0 {
			next <- struct{}{}
		}
		if line, err := r.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
		r.Discard(1)
	}
}

// With stream, what the function makes of the first part comes back before the
// second is sent.
func TestStreamRoutesAreFullDuplex(t *testing.T) {
	w := start(t, func(c *proxy.Config) { c.Routes[0].Stream = true }, "")
	first := strings.Repeat("a", 300<<10)
	c := raw(t, w, fmt.Sprintf("POST /function/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(first), first))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.CopyN(io.Discard, res.Body, 256<<10); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "3\r\nend\r\n0\r\n\r\n")
	rest, err := io.ReadAll(res.Body)
	if err != nil || !strings.HasSuffix(string(rest), "aend") || len(rest) != 44<<10+3 {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
}

func TestReplyThatBreaksOffIsNoWholeReply(t *testing.T) {
	w := start(t, nil, "")
	w.cluster.Handler = func(sealed.RequestHead, io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
		return sealed.ReplyHead{Status: 200}, func(out io.Writer) error {
			io.WriteString(out, "the first half")
			return errors.New("broken")
		}
	}
	res := w.do("GET", "/function/echo", nil)
	if b, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("%q was taken for a whole reply", b)
	}
	waitFor(t, func() bool { return w.counted("faasd_sec_proxy_requests_total", "node_lost", "all") == 1 })
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come")
		}
	}
}

// A caller that leaves within a reply, or within its own body, leaves nothing.
func TestCallersThatLeaveEndTheirExchange(t *testing.T) {
	w := start(t, nil, "")
	w.cluster.Handler = func(sealed.RequestHead, io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
		return sealed.ReplyHead{Status: 200}, func(out io.Writer) error {
			for {
				if _, err := out.Write(make([]byte, 16<<10)); err != nil {
					return err
				}
			}
		}
	}
	res := w.do("GET", "/function/echo", nil)
	io.CopyN(io.Discard, res.Body, 100<<10)
	res.Body.Close()
	c := raw(t, w, "POST /function/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 500000))
	c.Close()
	waitFor(t, func() bool { return w.counted("faasd_sec_proxy_in_flight") == 0 })
	if w.counted("faasd_sec_proxy_requests_total", "caller_gone", "all") != 1 {
		t.Error("the caller that left was not counted")
	}
}

// A caller that leaves while the function says nothing is noticed, and the cluster
// is told, before a reply and within one.
func TestCallersThatLeaveASilentFunctionEndTheirExchange(t *testing.T) {
	w := start(t, nil, "")
	for i, first := range []bool{false, true} {
		gone := make(chan struct{})
		w.cluster.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
			if !first && strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
				io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				close(gone)
				return true
			}
			return false
		}
		w.cluster.Handler = func(sealed.RequestHead, io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
			return sealed.ReplyHead{Status: 200}, func(out io.Writer) error {
				if _, err := io.WriteString(out, "first"); err != nil {
					return err
				}
				for { // what the cluster's own gateway notices is not looked at here
					time.Sleep(20 * time.Millisecond)
					select {
					case <-gone:
						return errors.New("gone")
					default:
					}
				}
			}
		}
		c := raw(t, w, "POST /function/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
		if first {
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err == nil {
				_, err = io.ReadFull(res.Body, make([]byte, 5))
			}
			if err != nil {
				t.Fatal(err)
			}
			defer close(gone)
		}
		c.Close()
		waitFor(t, func() bool {
			return w.counted("faasd_sec_proxy_requests_total", "caller_gone", "all") == float64(i+1) && w.counted("faasd_sec_proxy_in_flight") == 0
		})
		if !first {
			<-gone
		}
	}
}

// A new revision is met without the caller noticing, whether its body is small or
// was read into memory whole.
func TestNewRevisionIsSealedForAgain(t *testing.T) {
	w := start(t, nil, "")
	for i, n := range []int{10, 200 << 10} {
		read(t, w.do("POST", "/function/echo", strings.NewReader("warm")))
		w.deploy(fmt.Sprintf("%ds", 20+i))
		old := w.cluster.Revision
		var asked atomic.Int64
		w.cluster.Intercept = func(rw http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) && asked.Add(1) == 1 {
				clienttest.Fail(rw, api.Errorf(api.CodeStaleRevision, "another revision than %s", old))
				return true
			}
			return false
		}
		res := w.do("POST", "/function/echo", strings.NewReader(strings.Repeat("b", n)))
		if got := read(t, res); res.StatusCode != 201 || len(got) != n || asked.Load() != 2 {
			t.Errorf("%d bytes: %d, %d bytes, asked %d times", n, res.StatusCode, len(got), asked.Load())
		}
		w.cluster.Intercept = nil
	}
	if w.counted("faasd_sec_proxy_retried_total") != 2 {
		t.Error("retries were not counted")
	}
}

func TestFailuresOfPlatformAndPinsAreProblems(t *testing.T) {
	w := start(t, nil, "")
	w.cluster.Intercept = func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
			clienttest.Fail(rw, &api.Error{Code: api.CodeBusy, Message: "full", Remedy: "later"})
			return true
		}
		return false
	}
	res := w.do("POST", "/function/echo", strings.NewReader("x"))
	if res.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	refused(t, res, 429, api.CodeBusy)
	w.cluster.Intercept = nil
	// Of another function's name, and so of nobody who is pinned.
	if res := w.do("POST", "/function/echo.other", strings.NewReader("x")); res.StatusCode != 403 {
		t.Errorf("another function's descriptor was taken: %d", res.StatusCode)
	}
}

// A function's owner whom nobody pinned is never believed.
func TestOwnerIsNeverTrustedOnFirstUse(t *testing.T) {
	w := start(t, nil, "")
	other := start(t, nil, "")
	w.cluster.Intercept = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, api.GatewayPathFunctions) {
			return false
		}
		http.Redirect(rw, r, other.cluster.URL+r.URL.RequestURI(), http.StatusTemporaryRedirect)
		return true
	}
	if res := w.do("POST", "/function/echo", strings.NewReader("x")); res.StatusCode < 400 {
		t.Errorf("a redirect to another gateway was followed: %d", res.StatusCode)
	}
	w.cluster.Intercept = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, api.GatewayPathFunctions) {
			return false
		}
		res, err := http.Get(other.cluster.URL + r.URL.RequestURI())
		if err != nil {
			t.Error(err)
			return true
		}
		defer res.Body.Close()
		rw.Header().Set("Content-Type", api.ContentTypeJSON)
		io.Copy(rw, res.Body)
		return true
	}
	refused(t, w.do("POST", "/function/echo", strings.NewReader("x")), 403, api.CodeForbidden)
}

func TestFollowingRequestIsServedAfterALargeBody(t *testing.T) {
	w := start(t, nil, "")
	body := strings.Repeat("x", 400<<10)
	c := raw(t, w, fmt.Sprintf("POST /function/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || len(b) != len(body) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestExchangeEndsWithItsRoutesTimeout(t *testing.T) {
	w := start(t, func(c *proxy.Config) { c.Routes[0].Timeout = 2 * time.Second }, "")
	stay := make(chan struct{})
	defer close(stay)
	w.cluster.Handler = func(h sealed.RequestHead, _ io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
		return sealed.ReplyHead{Status: 200}, func(out io.Writer) error {
			if h.Path == "/half" {
				io.WriteString(out, "half")
			}
			<-stay
			return nil
		}
	}
	res := w.do("GET", "/function/echo", nil)
	if b := read(t, res); res.StatusCode != 504 || !strings.Contains(b, `"code":"deadline"`) {
		t.Errorf("%d %s", res.StatusCode, b)
	}
	res = w.do("GET", "/function/echo/half", nil)
	if b, err := io.ReadAll(res.Body); err == nil || string(b) != "half" {
		t.Errorf("%q, %v", b, err)
	}
	// A body that stops coming ends too, small or large.
	for _, size := range []int{100 << 10, 1 << 20} {
		c := raw(t, w, fmt.Sprintf("POST /function/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("s", 9000)))
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode < 400 {
			t.Errorf("%d bytes: %d", size, res.StatusCode)
		}
		c.Close()
	}
	waitFor(t, func() bool { return w.counted("faasd_sec_proxy_in_flight") == 0 })
}

func TestExpectationIsAnswered(t *testing.T) {
	w := start(t, nil, "")
	c := raw(t, w, "POST /function/echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("%q, %v", line, err)
	}
	r.ReadString('\n')
	io.WriteString(c, "body")
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "body" || res.Header.Get("Echo-Expect") != "" {
		t.Errorf("%q %v", b, err)
	}
}
