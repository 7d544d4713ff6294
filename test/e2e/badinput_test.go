package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// TestBadInput throws at the gateway what a stranger, a confused client or a
// hostile one may send. After all of it nothing is half made, nothing is in
// flight, and the function still answers.
func TestBadInput(t *testing.T) {
	c := up(t, 1)
	fn := c.deploy(t, "victim")
	c.must(t, fn, "/", "before")
	loris := c.slowLoris(t, 150)
	for _, sub := range []struct {
		name string
		test func(*testing.T, *cluster, api.FunctionName)
	}{
		{"envelopes", badEnvelopes},
		{"requests", badRequests},
		{"hidden requests", hiddenRequests},
		{"headers without end", endlessHeader},
		{"replays", replays},
		{"foreign caller", foreignCaller},
		{"management", badManagement},
		{"deployments", badDeployments},
		{"large bodies", largeBodies},
		{"clients that vanish", vanishingClients},
	} {
		t.Run(sub.name, func(t *testing.T) {
			sub.test(t, c, fn)
			if got := c.must(t, fn, "/", "after"); got != "after" {
				t.Errorf("the function answers %q", got)
			}
		})
	}
	loris.end(t)
	idleAgain(t, c)
	list, err := c.client.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if f.Name != fn {
			if err := c.client.Remove(t.Context(), f.Name); err != nil {
				t.Errorf("%s cannot be removed: %v", f.Name, err)
			}
		}
	}
	eventually(t, "one sandbox is left, the victim's", func() bool { return c.metric(t, "node-1", "faasd_sec_node_sandboxes") == 1 })
}

// stolen is a transport that keeps what a client would have posted.
type stolen struct{ body []byte }

func (s *stolen) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(req.URL.Path, api.GatewayPathInvoke) {
		return http.DefaultTransport.RoundTrip(req)
	}
	var err error
	if s.body, err = io.ReadAll(req.Body); err != nil {
		return nil, err
	}
	return nil, errors.New("stolen")
}

// message is a fresh sealed request as its caller sends it.
func (c *cluster) message(t testing.TB, fn api.FunctionName, body string) []byte {
	t.Helper()
	s := &stolen{}
	cl, err := client.New(client.Config{Gateway: c.Gateway(), Identity: c.id, Pins: c.pins, Transport: s})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := cl.Invoke(t.Context(), fn, client.Request{Body: strings.NewReader(body)}); err == nil || len(s.body) == 0 {
		t.Fatalf("no message was made: %v", err)
	}
	return s.body
}

// send posts bytes to a path of the gateway and reads what is said in clear.
func (c *cluster) send(t testing.TB, method, path, contentType string, body []byte, header ...string) (int, api.Problem) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, c.Gateway()+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s with %d bytes: %v", method, path, len(body), err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	var p api.Problem
	if resp.Header.Get("Content-Type") == api.ContentTypeProblem {
		if err := json.Unmarshal(b, &p); err != nil {
			t.Fatalf("problem of %s %s: %v", method, path, err)
		}
	}
	return resp.StatusCode, p
}

func (c *cluster) post(t testing.TB, fn api.FunctionName, msg []byte) (int, api.Problem) {
	t.Helper()
	return c.send(t, http.MethodPost, api.GatewayPathInvoke+string(fn), api.ContentTypeSealed, msg)
}

// badEnvelopes changes one message in every region of docs/envelope.md.
func badEnvelopes(t *testing.T, c *cluster, fn api.FunctionName) {
	served := c.metric(t, "coordinator", `faasd_sec_invocations_total{code="ok"}`)
	msg := c.message(t, fn, "never delivered")
	refused := func(what string, b []byte) {
		t.Helper()
		status, p := c.post(t, fn, b)
		if status < 400 || status >= 500 || p.Code == "" || p.Code == api.CodeInternal {
			t.Errorf("%s: status %d, code %q", what, status, p.Code)
		}
	}
	for at := 0; at < len(msg); at += 1 + at/40 {
		b := bytes.Clone(msg)
		b[at] ^= 1 << (at % 8)
		refused(fmt.Sprintf("bit flipped at %d of %d", at, len(msg)), b)
	}
	for _, n := range []int{0, 1, 3, 4, 200, 202, 300, len(msg) / 2, len(msg) - 17, len(msg) - 1} {
		refused(fmt.Sprintf("cut to %d of %d", n, len(msg)), msg[:n])
	}
	refused("one byte more", append(bytes.Clone(msg), 0))
	refused("twice in one body", append(bytes.Clone(msg), msg...))
	for _, n := range []int{10, 5000, 1 << 20} {
		b := make([]byte, n)
		rand.Read(b)
		refused(fmt.Sprintf("%d bytes of garbage", n), b)
		copy(b, msg[:min(n, 350)])
		refused(fmt.Sprintf("%d bytes that begin well", n), b)
	}
	if now := c.metric(t, "coordinator", `faasd_sec_invocations_total{code="ok"}`); now != served {
		t.Errorf("%v of them were answered", now-served)
	}
	// Altered copies that reached the node used its id up: whoever can alter
	// messages can drop them as well.
	if status, p := c.post(t, fn, msg); status != 200 && p.Code != api.CodeReplay {
		t.Errorf("the message itself: status %d, %+v", status, p)
	}
}

func badRequests(t *testing.T, c *cluster, fn api.FunctionName) {
	msg := c.message(t, fn, "x")
	path := api.GatewayPathInvoke + string(fn)
	for _, r := range []struct {
		what, method, path, contentType string
		status                          int
		code                            api.Code
	}{
		{"wrong content type", "POST", path, "application/json", 415, api.CodeMediaType},
		{"no content type", "POST", path, "", 415, api.CodeMediaType},
		{"GET", "GET", path, api.ContentTypeSealed, 405, api.CodeMethod},
		{"PUT", "PUT", path, api.ContentTypeSealed, 405, api.CodeMethod},
		{"unknown function", "POST", api.GatewayPathInvoke + "nobody", api.ContentTypeSealed, 404, api.CodeNotFound},
		{"another namespace", "POST", api.GatewayPathInvoke + "victim.other", api.ContentTypeSealed, 404, api.CodeNotFound},
		{"no name", "POST", api.GatewayPathInvoke, api.ContentTypeSealed, 400, api.CodeInvalid},
		{"upper case", "POST", api.GatewayPathInvoke + "Victim", api.ContentTypeSealed, 400, api.CodeInvalid},
		{"path below", "POST", path + "/x", api.ContentTypeSealed, 400, api.CodeInvalid},
		{"way out", "POST", api.GatewayPathInvoke + "..%2f..%2fetc%2fpasswd", api.ContentTypeSealed, 404, api.CodeNotFound},
		{"NUL in the name", "POST", api.GatewayPathInvoke + "victim%00", api.ContentTypeSealed, 400, api.CodeInvalid},
		{"way out of functions", "GET", "/v1/functions/..%2f..%2fadmin", "", 404, api.CodeNotFound},
		{"name of 300", "POST", api.GatewayPathInvoke + strings.Repeat("a", 300), api.ContentTypeSealed, 400, api.CodeInvalid},
		{"unknown path", "POST", "/admin", "", 404, api.CodeNotFound},
		{"registry without a signature", "GET", "/v2/test/victim/tags/list", "", 401, api.CodeUnauthorized},
		{"registry's way out", "GET", "/v2/..%2f..%2fca/blobs/x", "", 404, api.CodeNotFound},
		{"joining on the gateway", "POST", "/v1/join", api.ContentTypeJSON, 404, api.CodeNotFound},
	} {
		if status, p := c.send(t, r.method, r.path, r.contentType, msg); status != r.status || p.Code != r.code {
			t.Errorf("%s: status %d and code %q, want %d and %q (%s)", r.what, status, p.Code, r.status, r.code, p.Detail)
		}
	}
	// Announced beyond the limit of 4 GiB: refused at the header.
	out := c.raw(t, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", path, api.ContentTypeSealed, 5<<30, strings.Repeat("x", 9<<10)))
	if !strings.HasPrefix(out, "HTTP/1.1 413") {
		t.Errorf("5 GiB: %.200q", out)
	}
}

// raw sends bytes over one connection and returns all that comes back until
// the gateway closes it or says nothing for a while.
func (c *cluster) raw(t testing.TB, request string) string {
	t.Helper()
	conn := c.dial(t)
	defer conn.Close()
	go io.WriteString(conn, request)
	var out bytes.Buffer
	buf := make([]byte, 64<<10)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(700 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			return out.String()
		}
	}
}

func (c *cluster) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.Gateway(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// hiddenRequests puts a request into the body of another one, which the gateway
// refuses, ignores or takes: it must never be executed.
func hiddenRequests(t *testing.T, c *cluster, fn api.FunctionName) {
	const hidden = "GET /v1/functions HTTP/1.1\r\nHost: hidden\r\n\r\n"
	pad := strings.Repeat("p", 12<<10) + hidden
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(pad), pad)
	length := fmt.Sprintf("Content-Length: %d\r\n", len(pad))
	for _, first := range []string{
		"GET /v1/nodes", "GET /v1/functions", "GET /v1/broker", "GET /healthz", "GET /v1/functions/victim",
		"POST /function/victim", "POST /function/nobody", "GET /function/victim", "PUT /v1/functions/new", "DELETE /v1/functions/victim",
		"POST /v1/deposits", "DELETE /v1/deposits/victim", "GET /v1/functions/victim/logs", "POST /nowhere",
		"GET /v2/", "POST /v2/test/x/blobs/uploads/", "PATCH /v2/test/x/blobs/uploads/1", "PUT /v2/test/x/manifests/latest", "DELETE /v2/test/x/manifests/latest",
	} {
		for how, rest := range map[string]string{
			"length":            length + "\r\n" + pad,
			"chunks":            "Transfer-Encoding: chunked\r\n\r\n" + chunked,
			"length and chunks": length + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
			"odd chunks":        length + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
			"two lengths":       "Content-Length: 0\r\n" + length + "\r\n" + pad,
		} {
			t.Run(first+" by "+how, func(t *testing.T) {
				t.Parallel()
				out := c.raw(t, first+" HTTP/1.1\r\nHost: x\r\nContent-Type: "+api.ContentTypeSealed+"\r\n"+rest)
				if n := strings.Count(out, "HTTP/1.1 "); n != 1 {
					t.Errorf("%d replies to one request:\n%s", n, out)
				}
			})
		}
	}
}

// endlessHeader sends 100 MiB of headers: the gateway ends it early and takes
// no memory for it.
func endlessHeader(t *testing.T, c *cluster, _ api.FunctionName) {
	p := c.part(t, "coordinator")
	before := p.peak(t)
	conn := c.dial(t)
	defer conn.Close()
	io.WriteString(conn, "POST /function/victim HTTP/1.1\r\nHost: x\r\nX-Long: ")
	block := bytes.Repeat([]byte("h"), 1<<20)
	sent := 0
	if err := conn.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for sent < 100<<20 {
		n, err := conn.Write(block)
		sent += n
		if err != nil {
			break
		}
	}
	if sent >= 100<<20 {
		t.Error("all 100 MiB of header were taken")
	}
	out := c.raw(t, "GET /v1/nodes HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("h", 40<<10)+"\r\n\r\n")
	if !strings.HasPrefix(out, "HTTP/1.1 431") && out != "" {
		t.Errorf("40 KiB of header: %.200q", out)
	}
	if grown := p.peak(t) - before; grown > 24<<20 {
		t.Errorf("the coordinator grew by %d MiB", grown>>20)
	}
}

// peak is the most memory that the process ever had resident, in bytes.
func (p part) peak(t testing.TB) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// replays sends one message again: to the same sandbox, and to a fresh one.
func replays(t *testing.T, c *cluster, _ api.FunctionName) {
	fn := c.deploy(t, "replayed", func(d *client.Deployment) { d.Idle = time.Second })
	msg := c.message(t, fn, "once")
	if status, p := c.post(t, fn, msg); status != 200 {
		t.Fatalf("first: %d %+v", status, p)
	}
	if status, p := c.post(t, fn, msg); status != 409 || p.Code != api.CodeReplay {
		t.Errorf("second: %d %+v", status, p)
	}
	c.ends(t, fn, "idle")
	if status, p := c.post(t, fn, msg); status != 409 || p.Code != api.CodeReplay {
		t.Errorf("to a fresh sandbox: %d %+v", status, p)
	}
	var old [][]byte
	for range 80 {
		old = append(old, c.message(t, fn, "stale"))
	}
	c.deploy(t, "replayed", func(d *client.Deployment) { d.Exec = 5 * time.Second })
	// The former one serves what was sealed for it until it has drained.
	waitFor(t, 20*time.Second, "the former revision to be refused", func() error {
		if len(old) == 0 {
			t.Fatal("all messages for the former revision were served")
		}
		status, p := c.post(t, fn, old[0])
		old = old[1:]
		switch {
		case status == 409 && p.Code == api.CodeStaleRevision && p.Remedy != "":
			return nil
		case status != 200:
			t.Fatalf("for the former revision: %d %+v", status, p)
		}
		time.Sleep(200 * time.Millisecond) // there are only so many messages
		return errors.New("it still serves")
	})
	if got := c.must(t, fn, "/", "fresh"); got != "fresh" {
		t.Errorf("got %q", got)
	}
}

// stranger is another identity on the same cluster, who pins what it is told.
func (c *cluster) stranger(t testing.TB, transport http.RoundTripper) *cluster {
	t.Helper()
	o := newOwner(t, c.Cluster)
	var err error
	if o.client, err = client.New(client.Config{Gateway: c.Gateway(), Identity: o.id, Pins: o.pins, TrustOnFirstUse: true, Transport: transport}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.client.Close)
	return o
}

func foreignCaller(t *testing.T, c *cluster, fn api.FunctionName) {
	_, _, err := c.stranger(t, nil).invoke(t, fn, client.Request{Body: strings.NewReader("let me in")})
	if api.CodeOf(err) != "sender" {
		t.Errorf("got %v, want code sender", err)
	}
}

// lying is a transport that answers some requests itself.
type lying func(*http.Request) *http.Response

func (l lying) RoundTrip(req *http.Request) (*http.Response, error) {
	if resp := l(req); resp != nil {
		return resp, nil
	}
	return http.DefaultTransport.RoundTrip(req)
}

func canned(status int, body any) *http.Response {
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {api.ContentTypeProblem}}, Body: io.NopCloser(bytes.NewReader(b))}
}

// badManagement tries what only owners may do.
func badManagement(t *testing.T, c *cluster, fn api.FunctionName) {
	path := api.GatewayPathFunctions + "/" + string(fn)
	sign := func(id *unseal.Identity, method, target string, body []byte) string {
		s := &reqauth.Signer{Key: id.Signer(), Random: rand.Reader, Now: time.Now}
		h, err := s.Sign(method, target, sm3.Sum(body))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	other := c.stranger(t, nil)
	for what, r := range map[string]struct {
		method, path, auth string
		body               string
		status             int
	}{
		"remove unsigned":           {"DELETE", path, "", "", 401},
		"remove as another":         {"DELETE", path, sign(other.id, "DELETE", path, nil), "", 403},
		"remove, signed for GET":    {"DELETE", path, sign(c.id, "GET", path, nil), "", 401},
		"remove, signed for other":  {"DELETE", path, sign(c.id, "DELETE", path+"x", nil), "", 401},
		"deploy unsigned":           {"PUT", path, "", "{}", 401},
		"deploy, altered":           {"PUT", path, sign(c.id, "PUT", path, []byte(`{}`)), `{ }`, 401},
		"deploy nothing":            {"PUT", path, sign(c.id, "PUT", path, []byte(`{}`)), `{}`, 400},
		"deploy no JSON":            {"PUT", path, sign(c.id, "PUT", path, []byte(`x`)), `x`, 400},
		"logs unsigned":             {"GET", path + "/logs", "", "", 401},
		"logs as another":           {"GET", path + "/logs", sign(other.id, "GET", path+"/logs", nil), "", 403},
		"keys removed as another":   {"DELETE", "/v1/deposits/" + string(fn), sign(other.id, "DELETE", "/v1/deposits/"+string(fn), nil), "", 403},
		"keys removed unsigned":     {"DELETE", "/v1/deposits/" + string(fn), "", "", 401},
		"nonsense as authorization": {"DELETE", path, "Bearer nonsense", "", 401},
	} {
		if status, p := c.send(t, r.method, r.path, api.ContentTypeJSON, []byte(r.body), "Authorization", r.auth); status != r.status {
			t.Errorf("%s: status %d, want %d: %+v", what, status, r.status, p)
		}
	}
	// A signature serves once.
	auth := sign(c.id, "GET", path+"/logs", nil)
	for i, want := range []int{200, 409} {
		if status, p := c.send(t, "GET", path+"/logs", "", nil, "Authorization", auth); status != want {
			t.Errorf("signed request, time %d: status %d, want %d: %+v", i+1, status, want, p)
		}
	}
	if status, p := c.send(t, "POST", api.GatewayPathDeposits, api.ContentTypeSealed, []byte("no deposit")); status < 400 || status >= 500 {
		t.Errorf("garbage as a deposit: %d %+v", status, p)
	}
	// One who deploys over another's name: his own tool refuses; one without
	// such scruples meets the broker; one who lies about the broker's answer
	// as well meets the coordinator.
	for _, lies := range []int{0, 1, 2} {
		thief := c.stranger(t, lying(func(req *http.Request) *http.Response {
			switch {
			case lies > 0 && req.Method == "GET" && req.URL.Path == path:
				return canned(404, api.Problem{Code: api.CodeNotFound, Status: 404})
			case lies > 1 && req.URL.Path == api.GatewayPathDeposits:
				return canned(200, struct{}{})
			}
			return nil
		}))
		d := c.describeTest(t, thief, fn)
		d.ImageRef, d.ImageDigest = "test/victim", c.pushTestImage(t, "test/victim")
		if _, err := thief.client.Deploy(t.Context(), d); api.CodeOf(err) != api.CodeForbidden {
			t.Errorf("deploy over another's name with %d lies: %v", lies, err)
		}
	}
	if st, err := c.client.Describe(t.Context(), fn); err != nil || st.Owner != c.fingerprint().String() {
		t.Errorf("owner is %s, %v", st.Owner, err)
	}
}

// describeTest is a deployment of the test function by owner.
func (c *cluster) describeTest(t testing.TB, owner *cluster, name api.FunctionName) client.Deployment {
	t.Helper()
	return client.Deployment{
		Name: name, Mode: "http", Upstream: "unix", Keys: owner.keyring, PushBundle: owner.pushBundle, AnyCaller: true,
		Resources: api.Resources{CPU: 500, Memory: 64 << 20, PIDs: 128, Tmp: 16 << 20},
		Exec:      5 * time.Second, Attestation: []string{"node-key"},
	}
}

// badDeployments leaves nothing behind but what was asked for.
func badDeployments(t *testing.T, c *cluster, _ api.FunctionName) {
	digest := c.pushTestImage(t, "test/good")
	none := "sha256:" + strings.Repeat("0", 64)
	for what, change := range map[string]func(*client.Deployment){
		"image that is not there": func(d *client.Deployment) { d.ImageDigest = none },
		"repository not there":    func(d *client.Deployment) { d.ImageRef = "test/other" },
		"way out of the registry": func(d *client.Deployment) { d.ImageRef = "../../ca" },
		"absolute path as image":  func(d *client.Deployment) { d.ImageRef = "/etc/passwd" },
		"bundle never pushed": func(d *client.Deployment) {
			d.Bundle = client.Bundle{Env: map[string]string{"A": "b"}}
			d.PushBundle = func(context.Context, string, *os.File, int64) (string, error) { return none, nil }
		},
		"no memory": func(d *client.Deployment) { d.Resources.Memory = 0 },
	} {
		name := api.FunctionName("half-made.openfaas-fn")
		d := c.describeTest(t, c, name)
		d.ImageRef, d.ImageDigest = "test/good", digest
		change(&d)
		if _, err := c.client.Deploy(t.Context(), d); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := c.client.Describe(t.Context(), name); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("%s: the function is there: %v", what, err)
		}
	}
	for _, name := range []string{"..", "a/b", "a..b", "A", "", "a.b.c", "%2e%2e"} {
		if _, err := api.ParseFunctionName(name); err == nil {
			t.Errorf("%q is a name", name)
		}
		if status, _ := c.send(t, "PUT", api.GatewayPathFunctions+"/"+name, api.ContentTypeJSON, []byte("{}"), "Authorization", "x"); status < 400 || status >= 500 {
			t.Errorf("PUT of %q: %d", name, status)
		}
	}
	huge := c.deploy(t, "huge", func(d *client.Deployment) { d.Resources.Memory = 1 << 40 })
	began := time.Now()
	_, _, err := c.invoke(t, huge, client.Request{})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeNoRoom || e.Field != "limits.memory" {
		t.Errorf("more than any node has: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	mute := c.deploy(t, "mute", func(d *client.Deployment) { d.Process = []string{"/not-there"} })
	began = time.Now()
	if _, _, err = c.invoke(t, mute, client.Request{}); !errors.As(err, &e) || e.Code != api.CodeStartFailed || e.Field != "fprocess" || e.Remedy == "" {
		t.Errorf("program that is not there: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	blank := c.deploy(t, "blank", func(d *client.Deployment) { d.ImageDigest = c.pushBareImage(t, d.ImageRef) })
	if _, _, err = c.invoke(t, blank, client.Request{}); !errors.As(err, &e) || e.Code != api.CodeStartFailed || e.Field != "fprocess" || e.Remedy == "" {
		t.Errorf("image without an entry point: %v", err)
	}
}

// slowLoris holds connections that never finish a request.
type slowLoris struct {
	began time.Time
	conns []net.Conn
}

func (c *cluster) slowLoris(t testing.TB, n int) *slowLoris {
	t.Helper()
	l := &slowLoris{began: time.Now()}
	for i := range n {
		conn := c.dial(t)
		l.conns = append(l.conns, conn)
		begin := "POST /function/victim HTTP/1.1\r\nHost: x\r\nX-Slow: "
		if i%2 == 1 {
			begin = "POST /function/victim HTTP/1.1\r\nHost: x\r\nContent-Type: " + api.ContentTypeSealed + "\r\nContent-Length: 100000\r\n\r\nFSG1"
		}
		io.WriteString(conn, begin)
	}
	t.Cleanup(func() {
		for _, c := range l.conns {
			c.Close()
		}
	})
	return l
}

// end waits until the gateway has ended all of them.
func (l *slowLoris) end(t testing.TB) {
	t.Helper()
	for i, c := range l.conns {
		if err := c.SetReadDeadline(l.began.Add(35 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(bufio.NewReader(c))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d is open after %v", i, time.Since(l.began))
		}
		if strings.Contains(string(b), "200 OK") {
			t.Errorf("connection %d was served", i)
		}
	}
}

// pattern is n bytes that are cheap to make and to check.
type pattern struct{ n, at int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at >= p.n {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.n-p.at)]
	for i := range b {
		b[i] = 'a' + byte((p.at+int64(i))%23)
	}
	p.at += int64(len(b))
	return len(b), nil
}

// largeBodies move more than any part of the platform may hold.
func largeBodies(t *testing.T, c *cluster, fn api.FunctionName) {
	watched := map[string]part{"coordinator": c.part(t, "coordinator"), "node": c.part(t, "node-1")}
	before := map[string]int64{}
	for name, p := range watched {
		before[name] = p.peak(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, r := range []struct {
		path   string
		size   int64
		stream bool
		upper  bool
	}{
		{"/", 64 << 20, true, false},
		{"/upper", 64 << 20, true, true},
		{"/hash", 256 << 20, true, false},
		{"/hash", 8 << 20, false, false}, // held back until it is verified: spooled as ciphertext
	} {
		began := time.Now()
		resp, err := c.client.Invoke(ctx, fn, client.Request{Path: r.path, Body: &pattern{n: r.size}, Stream: r.stream})
		if err != nil {
			t.Errorf("%s of %d MiB: %v", r.path, r.size>>20, err)
			continue
		}
		if r.path == "/hash" {
			b, err := io.ReadAll(resp.Body)
			if count, _, _ := strings.Cut(string(b), " "); err != nil || count != strconv.FormatInt(r.size, 10) {
				t.Errorf("%s of %d MiB: status %d, %.200q, %v", r.path, r.size>>20, resp.Status, b, err)
			}
		} else if n, err := samePattern(resp.Body, r.upper); err != nil || n != r.size {
			t.Errorf("%s of %d MiB: %d bytes came back, %v", r.path, r.size>>20, n, err)
		}
		resp.Body.Close()
		t.Logf("%s of %d MiB: %v", r.path, r.size>>20, time.Since(began))
	}
	_, _, err := c.invoke(t, fn, client.Request{Path: "/hash", Body: &pattern{n: 48 << 20}})
	if api.CodeOf(err) != api.CodeTooLarge {
		t.Errorf("more than a sandbox can hold back: %v", err)
	}
	for name, p := range watched {
		if grown := p.peak(t) - before[name]; grown > 48<<20 {
			t.Errorf("%s grew by %d MiB", name, grown>>20)
		}
	}
	// The agent and the function share 64 + 48 MiB: more would have ended them.
	if s := c.sandbox(t, fn); s.LastError != "" {
		t.Errorf("the sandbox says %q", s.LastError)
	}
}

// samePattern reads r to its end and compares it.
func samePattern(r io.Reader, upper bool) (int64, error) {
	want := &pattern{n: 1 << 40}
	got, exp := make([]byte, 64<<10), make([]byte, 64<<10)
	for total := int64(0); ; {
		n, err := r.Read(got)
		if _, werr := io.ReadFull(want, exp[:n]); werr != nil {
			return total, werr
		}
		if upper {
			copy(exp, bytes.ToUpper(exp[:n]))
		}
		if !bytes.Equal(got[:n], exp[:n]) {
			return total, fmt.Errorf("differs after %d bytes", total)
		}
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// vanishingClients leave in the middle of a request or of a reply.
func vanishingClients(t *testing.T, c *cluster, fn api.FunctionName) {
	for i := range 12 {
		ctx, cancel := context.WithCancel(t.Context())
		pr, pw := io.Pipe()
		go func() {
			io.Copy(pw, &pattern{n: 2 << 20})
			if i%3 != 0 { // the third kind leaves while it waits for its reply
				time.Sleep(20 * time.Millisecond)
				cancel()
			}
			pw.CloseWithError(errors.New("gone"))
		}()
		path := []string{"/hash", "/upper", "/"}[i%3]
		resp, err := c.client.Invoke(ctx, fn, client.Request{Path: path, Body: pr, Stream: true})
		if err == nil {
			io.ReadFull(resp.Body, make([]byte, 1000))
			resp.Body.Close()
		}
		cancel()
		pr.Close()
	}
	// Raw ones, in the middle of what is read whole.
	msg := c.message(t, fn, strings.Repeat("x", 20<<10))
	for range 20 {
		conn := c.dial(t)
		fmt.Fprintf(conn, "POST /function/victim HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			api.ContentTypeSealed, len(msg), msg[:len(msg)/2])
		conn.Close()
	}
	for range 10 {
		msg := c.message(t, fn, strings.Repeat("x", 20<<10))
		conn := c.dial(t)
		fmt.Fprintf(conn, "POST /function/victim HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			api.ContentTypeSealed, len(msg), msg)
		conn.Close()
	}
	idleAgain(t, c)
	eventually(t, "every slot of the sandbox is free", func() bool { return c.sandbox(t, fn).InFlight == 0 })
	if s := c.sandbox(t, fn); s.State != "ready" {
		t.Errorf("the sandbox is %s: %s", s.State, s.LastError)
	}
	files, err := filepath.Glob(filepath.Join(c.runDir(), "n1", "s", "*"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d socket directories", len(files))
}
