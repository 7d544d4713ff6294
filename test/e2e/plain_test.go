package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// pushImageWith pushes the test function's image with a configuration of its own, and
// more layers, as repo:latest.
func (c *cluster) pushImageWith(t testing.TB, repo string, cfg v1.Config, layers ...v1.Layer) {
	t.Helper()
	host := strings.TrimPrefix(c.Gateway(), "http://")
	opts := []remote.Option{remote.WithTransport(c.signed()), remote.WithContext(t.Context())}
	from, err := name.NewDigest(host+"/"+repo+"@"+c.pushTestImage(t, repo), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(from, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, cfg); err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(host+"/"+repo+":latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, opts...); err != nil {
		t.Fatal(err)
	}
}

// putPlain deploys a plain function and returns the answer's status and body.
func (c *cluster) putPlain(t testing.TB, fn string, p api.Plain) (int, string) {
	t.Helper()
	b, err := json.Marshal(api.Revision{Plain: &api.PlainRevision{Function: p}})
	if err != nil {
		t.Fatal(err)
	}
	return c.plainly(t, &http.Client{Transport: c.signed()}, http.MethodPut, api.GatewayPathFunctions+"/"+fn, bytes.NewReader(b))
}

// plainly makes a request of no special kind.
func (c *cluster) plainly(t testing.TB, h *http.Client, method, path string, body io.Reader) (int, string) {
	t.Helper()
	resp := c.ask(t, h, method, path, body)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(b)
}

func (c *cluster) ask(t testing.TB, h *http.Client, method, path string, body io.Reader, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, c.Gateway()+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := h.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

// call invokes a plain function and wants status 200.
func (c *cluster) call(t testing.TB, path, body string) string {
	t.Helper()
	status, b := c.plainly(t, &http.Client{}, http.MethodPost, api.GatewayPathInvoke+path, strings.NewReader(body))
	if status != http.StatusOK {
		t.Fatalf("%s: %d %s", path, status, b)
	}
	return b
}

func TestPlainFunctionsPassRequestsAsTheyAre(t *testing.T) {
	c := up(t, 1)
	c.pushTestImage(t, "plain/echo")
	if status, b := c.putPlain(t, "echo", api.Plain{Image: "plain/echo", Env: map[string]string{"exec_timeout": "3s", "GREETING": "hello"}}); status != http.StatusOK {
		t.Fatalf("%d %s", status, b)
	}
	h := &http.Client{}
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		resp := c.ask(t, h, method, "/function/echo/a%20b/c?x=1&y=%2F", strings.NewReader("body"), "X-Test", "yes", "X-Call-Id", "call-1")
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || string(b) != "body" {
			t.Fatalf("%s: %d %q %v", method, resp.StatusCode, b, err)
		}
		for k, want := range map[string]string{"X-Echo-Method": method, "X-Echo-Path": "/a b/c", "X-Echo-Query": "x=1&y=%2F", "X-Echo-Header": "yes", "X-Call-Id": "call-1"} {
			if got := resp.Header.Get(k); got != want {
				t.Errorf("%s: %s is %q, want %q", method, k, got, want)
			}
		}
		if resp.Header.Get(api.HeaderServedBy) == "" || resp.Header.Get(api.HeaderStartTime) == "" || resp.Header.Get(api.HeaderDuration) == "" || resp.Header.Get(api.HeaderInternal) != "" {
			t.Errorf("%s: %v", method, resp.Header)
		}
	}
	resp := c.ask(t, h, "HEAD", "/function/echo.openfaas-fn/env", nil)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength <= 0 {
		t.Errorf("HEAD: %d, length %d", resp.StatusCode, resp.ContentLength)
	}
	if resp = c.ask(t, h, "GET", "/function/echo/away", nil); resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "/elsewhere?x=1" {
		t.Errorf("redirect: %d %v", resp.StatusCode, resp.Header)
	}
	resp.Body.Close()
	if env := c.call(t, "echo/env", ""); !strings.Contains(env, "GREETING=hello") {
		t.Error(env)
	}
	heads := c.call(t, "echo/heads", "")
	for _, want := range []string{"X-Call-Id: ", "X-Start-Time: 1", "X-Forwarded-Host: " + strings.TrimPrefix(c.Gateway(), "http://"), "X-Forwarded-For: 127.0.0.1"} {
		if !strings.Contains(heads, want) {
			t.Errorf("the function got no %q:\n%s", want, heads)
		}
	}
	// A body beyond what is buffered, both ways at once.
	big := strings.Repeat("0123456789abcdef", 1<<17)
	if got := c.call(t, "echo/", big); got != big {
		t.Errorf("%d bytes came back of %d", len(got), len(big))
	}
	for path, want := range map[string]int{"/function/none": 404, "/function/echo/sleep?ms=20000": 504} {
		resp := c.ask(t, h, "GET", path, nil)
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || want == 504 && resp.Header.Get(api.HeaderInternal) == "" {
			t.Errorf("%s: %d %s %v", path, resp.StatusCode, b, resp.Header)
		}
	}
	if resp = c.ask(t, h, "TRACE", "/function/echo", nil); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("TRACE: %d", resp.StatusCode)
	}
	resp.Body.Close()
	// It says plain wherever it is listed, and a sealed one stays sealed.
	if _, list := c.plainly(t, h, "GET", "/v1/functions", nil); !strings.Contains(list, `"mode":"plain","sealed":false`) {
		t.Error(list)
	}
	sealed := c.deploy(t, "sealed")
	status, b := c.plainly(t, h, "POST", "/function/sealed", strings.NewReader("x"))
	if status != http.StatusUnsupportedMediaType || !strings.Contains(b, "faasd-sec proxy") {
		t.Errorf("a sealed function took a plain request: %d %s", status, b)
	}
	if resp, b, err := c.invoke(t, sealed, client.Request{Body: strings.NewReader("x")}); err != nil || resp.Status != 200 || string(b) != "x" {
		t.Errorf("sealed: %v %q", err, b)
	}
	req := c.ask(t, h, "POST", "/function/echo", strings.NewReader("x"), "Content-Type", api.ContentTypeSealed)
	if req.Body.Close(); req.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("a plain function took a sealed request: %d", req.StatusCode)
	}
	// Its root can be written to, its image is untouched, and it is nobody's root.
	if got := c.call(t, "echo/write?path=/tmp/x", "1"); got != fmt.Sprintf("%d:%d", api.FunctionID, api.FunctionID) {
		t.Errorf("runs as %s", got)
	}
	c.call(t, "echo/log", "a line")
	eventually(t, "the line is in the log", func() bool { return strings.Contains(c.plainLogs(t, "echo"), "out a line") })
}

// plainLogs are the lines of a plain function's log.
func (c *cluster) plainLogs(t testing.TB, fn string) string {
	t.Helper()
	resp := c.ask(t, &http.Client{Transport: c.signed()}, "GET", api.GatewayPathFunctions+"/"+fn+"/logs", nil)
	defer resp.Body.Close()
	var out strings.Builder
	for br := bufio.NewReader(resp.Body); ; {
		b, err := api.ReadFrame(br)
		if err != nil {
			return out.String()
		}
		var f api.LogFrame
		if len(b) > 0 && json.Unmarshal(b, &f) == nil {
			for _, l := range f.Lines {
				fmt.Fprintln(&out, l.Text)
			}
		}
	}
}

func TestPlainFunctionsStreamAndUpgrade(t *testing.T) {
	c := up(t, 1)
	c.pushTestImage(t, "plain/echo")
	if status, b := c.putPlain(t, "echo", api.Plain{Image: "plain/echo"}); status != http.StatusOK {
		t.Fatalf("%d %s", status, b)
	}
	// Each event is there before the next one is allowed to be sent.
	resp := c.ask(t, &http.Client{}, "GET", "/function/echo/events?n=3", nil)
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("content type %q", ct)
	}
	br := bufio.NewReader(resp.Body)
	for i := range 3 {
		c.call(t, "echo/step", "")
		line, err := br.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d: %q, %v", i, line, err)
		}
		br.ReadString('\n')
	}
	// And a connection of another protocol.
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.Gateway(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "GET /function/echo/shout HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n")
	cr := bufio.NewReader(conn)
	up, err := http.ReadResponse(cr, nil)
	if err != nil || up.StatusCode != http.StatusSwitchingProtocols || up.Header.Get("Sec-WebSocket-Accept") != "k" || up.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%+v, %v", up, err)
	}
	for i := range 3 {
		fmt.Fprintf(conn, "line %d\n", i)
		if got, err := cr.ReadString('\n'); err != nil || got != fmt.Sprintf("LINE %d\n", i) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	conn.Close()
	// It holds no slot any more.
	eventually(t, "the slot is free", func() bool {
		_, b := c.plainly(t, &http.Client{}, "GET", "/v1/functions/echo", nil)
		var st api.FunctionStatus
		return json.Unmarshal([]byte(b), &st) == nil && len(st.Sandboxes) > 0 && st.Sandboxes[0].InFlight == 0
	})
}
