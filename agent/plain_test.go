package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// newPlainWorld is a sandbox of a plain function that serves on a free port.
func newPlainWorld(t *testing.T, edit func(*api.Plain)) *world {
	t.Helper()
	w := newWorld(t, nil)
	_, port, _ := net.SplitHostPort(freeAddr(t))
	p := api.Plain{Image: "x", Env: map[string]string{"port": port, "exec_timeout": "2s", "GREETING": "hi"}}
	if edit != nil {
		edit(&p)
	}
	rev := must[string](t)(p.Revision("plain.openfaas-fn", "sha256:1"))
	w.revision = must[sealed.Digest](t)(sealed.ParseDigest(rev))
	signer := w.broker.SigningKey()
	w.openly = &api.PlainBind{Revision: rev, Function: api.PlainRevision{Name: "plain.openfaas-fn", Image: "sha256:1", Function: p, Broker: fmt.Sprintf("%x", signer[:])}}
	w.image = api.ImageConfig{Entrypoint: []string{testBinary, "fn"}, Cmd: []string{"http", "127.0.0.1:" + port}}
	return w
}

// plainly sends one request as a node does.
func (w *world) plainly(method, target string, body io.Reader, header ...string) *http.Response {
	w.t.Helper()
	req := must[*http.Request](w.t)(http.NewRequestWithContext(w.t.Context(), method, "http://agent"+api.AgentPathPlain, body))
	req.Header.Set(api.HeaderTarget, target)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return must[*http.Response](w.t)(w.http.RoundTrip(req))
}

func TestPlainRequestsPassThroughTheAgent(t *testing.T) {
	w := newPlainWorld(t, nil).start()
	for _, size := range []int{0, 10, 1 << 20} {
		want := strings.Repeat("x", size)
		resp := w.plainly("PUT", "/echo?a=%2F", strings.NewReader(want), "X-Test", "1", "X-Faasd-Sec-Ticket", "t")
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || string(b) != want || resp.Header.Get(api.HeaderFunctionErr) != "" {
			t.Fatalf("%d bytes: %d, %d bytes, %v", size, resp.StatusCode, len(b), err)
		}
	}
	// What is no plain function's is refused, and marked as the agent's word.
	req := must[*http.Request](t)(http.NewRequest("POST", "http://agent"+api.AgentPathInvoke, strings.NewReader("x")))
	req.Header.Set("Content-Type", api.ContentTypeSealed)
	resp := must[*http.Response](t)(w.http.RoundTrip(req))
	if resp.Body.Close(); resp.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("a sealed message: %d", resp.StatusCode)
	}
	w.node.wait("the function's line in clear", func(n *testNode) bool { return n.logged(streamOut, "serving") })
	if w.node.failed != nil {
		t.Errorf("%+v", w.node.failed)
	}
}

// A coordinator sends a request on that a node refused: a function that could say so
// would have its own requests run again and again.
func TestAPlainFunctionCannotSpeakForThePlatform(t *testing.T) {
	w := newPlainWorld(t, nil).start()
	resp := w.plainly("GET", "/claim", nil)
	resp.Body.Close()
	for name := range resp.Header {
		if strings.HasPrefix(name, "X-Faasd-Sec-") {
			t.Errorf("the function's %s was passed on", name)
		}
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Own") != "busy" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

func TestBodiesOfManyPlainRequestsAreBoundedTogether(t *testing.T) {
	w := newPlainWorld(t, func(p *api.Plain) { p.Env["max_inflight"], p.Env["exec_timeout"] = "1000", "5m" })
	w.cfg.ReadBytes = 100 << 10
	w.start()
	large := strings.Repeat("x", 60<<10)
	var held []*http.Response
	for range 5 {
		held = append(held, w.plainly("POST", "/half", strings.NewReader(large)))
	}
	resp := w.plainly("POST", "/echo", strings.NewReader(large))
	if resp.Body.Close(); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get(api.HeaderFunctionErr) != string(api.CodeBusy) {
		t.Errorf("one too many: %d %v", resp.StatusCode, resp.Header)
	}
	for _, h := range held {
		if h.StatusCode != http.StatusOK {
			t.Errorf("one of those before: %d", h.StatusCode)
		}
		h.Body.Close()
	}
	eventually(t, "there is room again", func() bool {
		resp := w.plainly("POST", "/echo", strings.NewReader(large))
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func TestASealedFunctionsAgentTakesNoPlainRequest(t *testing.T) {
	w := newWorld(t, nil).start()
	resp := w.plainly("GET", "/echo", nil)
	b, _ := io.ReadAll(resp.Body)
	if resp.Body.Close(); resp.StatusCode != http.StatusUnsupportedMediaType || !bytes.Contains(b, []byte("faasd-sec proxy")) || resp.Header.Get(api.HeaderFunctionErr) == "" {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

func TestPlainSecretsAreWrittenBeforeTheFunctionStarts(t *testing.T) {
	w := newPlainWorld(t, func(p *api.Plain) { p.Secrets = []string{"b", "a.pem"} })
	w.secrets = map[string][]byte{"a.pem": []byte("value of a"), "b": []byte("value of b"), "c": []byte("not asked for")}
	if err := os.MkdirAll(w.cfg.SecretsDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(w.cfg.SecretsDir, testUID, testGID); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Dir(w.cfg.SecretsDir), 0o755), os.Chmod(filepath.Dir(filepath.Dir(w.cfg.SecretsDir)), 0o755)); err != nil {
		t.Fatal(err)
	}
	w.start()
	for _, name := range []string{"a.pem", "b"} {
		path := filepath.Join(w.cfg.SecretsDir, name)
		b, err := os.ReadFile(path)
		if info, serr := os.Stat(path); err != nil || serr != nil || info.Mode().Perm() != 0o400 || string(b) != string(w.secrets[name]) {
			t.Errorf("%s: %q, %v, %v", name, b, info, err)
		}
	}
	if _, err := os.Stat(filepath.Join(w.cfg.SecretsDir, "c")); err == nil {
		t.Error("a secret is there that was not asked for")
	}
}

func TestPlainSecretsThatAreNotReleasedStopTheStart(t *testing.T) {
	w := newPlainWorld(t, func(p *api.Plain) { p.Secrets = []string{"a"} })
	w.refuse = &api.Problem{Code: api.CodeNotFound, Detail: "there is no secret a"}
	w.run()
	w.node.wait("failed", func(n *testNode) bool { return n.failed != nil })
	if w.node.failed.Code != api.CodeNotFound || w.node.ready {
		t.Errorf("%+v", w.node.failed)
	}
}

func TestAPlainFunctionThatTakesTooLongIsToldApart(t *testing.T) {
	w := newPlainWorld(t, nil).start()
	began := time.Now()
	resp := w.plainly("GET", "/slow?20s", nil)
	resp.Body.Close()
	if resp.StatusCode != http.StatusGatewayTimeout || resp.Header.Get(api.HeaderFunctionErr) != string(api.CodeDeadline) || time.Since(began) < time.Second {
		t.Errorf("%d %v after %v", resp.StatusCode, resp.Header, time.Since(began))
	}
}
