package e2e

import (
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/local"
)

func TestImagesWithAWatchdogRunAsTheyAre(t *testing.T) {
	c := up(t, 1)
	c.pushImageWith(t, "plain/dog", v1.Config{Entrypoint: []string{"/fn"}, Cmd: []string{"watchdog"}, Env: []string{"exec_timeout=10s", "FROM_IMAGE=yes"}, User: "1234:1235", WorkingDir: "/tmp"})
	deploy := func(fn, process string, env map[string]string) {
		t.Helper()
		if status, b := c.putPlain(t, fn, api.Plain{Image: "plain/dog:latest", EnvProcess: process, Env: env, Limits: &api.PlainAmounts{CPU: "250m", Memory: "96Mi"}}); status != http.StatusOK {
			t.Fatalf("%s: %d %s", fn, status, b)
		}
	}
	deploy("classic", "/fn environ", map[string]string{"A": "b"})
	resp := c.ask(t, &http.Client{}, "PUT", "/function/classic/sub/path?q=1", strings.NewReader("in"), "X-Some-Header", "v")
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	for _, want := range []string{"Http_Method=PUT", "Http_Path=/sub/path", "Http_Query=q=1", "Http_X_Some_Header=v", "A=b", "FROM_IMAGE=yes", "fprocess=/fn environ"} {
		if !strings.Contains(string(b), want+"\n") {
			t.Errorf("classic: no %s in %d\n%s", want, resp.StatusCode, b)
		}
	}
	eventually(t, "the watchdog's lines are in the log", func() bool {
		l := c.plainLogs(t, "classic")
		return strings.Contains(l, "Forking fprocess.") && strings.Contains(l, "Wrote ")
	})
	deploy("failing", "/fn fail", nil)
	if status, b := c.plainly(t, &http.Client{}, "GET", "/function/failing", nil); status != http.StatusInternalServerError {
		t.Errorf("a process that fails: %d %s", status, b)
	}
	deploy("streaming", "/fn cat", map[string]string{"mode": "streaming"})
	if got := c.call(t, "streaming", "abc"); got != "abc" {
		t.Errorf("streaming: %q", got)
	}
	deploy("static", "", map[string]string{"mode": "static", "static_path": "/"})
	if status, b := c.plainly(t, &http.Client{}, "GET", "/function/static/fn", nil); status != http.StatusOK || len(b) < 1<<20 {
		t.Errorf("static: %d, %d bytes", status, len(b))
	}
	http1 := map[string]string{"mode": "http", "serve_on": "9000", "upstream_url": "http://127.0.0.1:9000"}
	deploy("http", "/fn serve", http1)
	if got := c.call(t, "http/write?path=/tmp/x", "1"); got != "1234:1235" {
		t.Errorf("http: runs as %q", got)
	}
	// A new revision: the old one hears of its end, and has time for it.
	http1["more"] = "env"
	deploy("http", "/fn serve", http1)
	eventually(t, "the new one serves", func() bool { return strings.Contains(c.call(t, "http/env", ""), "more=env") })
	eventually(t, "the old one was asked to end", func() bool { return strings.Contains(c.plainLogs(t, "http"), "SIGTERM received") })
}

func TestPrivateRegistriesAreAskedWithTheirCredentials(t *testing.T) {
	auth := filepath.Join(t.TempDir(), "config.json")
	write := func(s string) {
		if err := os.WriteFile(auth, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{}`)
	c := up(t, 1, func(cfg *local.Config) {
		cfg.Args, cfg.NodeArgs = []string{"-registry-auth", auth}, []string{"-registry-auth", auth}
	})
	private := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	locked := false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, pass, _ := r.BasicAuth()
		if locked && subtle.ConstantTimeCompare([]byte(user+":"+pass), []byte("alice:secret")) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		private.ServeHTTP(w, r)
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	from, err := name.NewDigest(strings.TrimPrefix(c.Gateway(), "http://")+"/plain/p@"+c.pushTestImage(t, "plain/p"), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(from, remote.WithTransport(c.signed()), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	// Another image than the cluster's, so that it has to be fetched from there.
	if img, err = withLabel(img, "private"); err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(host+"/team/app:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	locked = true
	p := api.Plain{Image: host + "/team/app:v1"}
	if status, b := c.putPlain(t, "app", p); status != http.StatusBadRequest || !strings.Contains(b, "-registry-auth") {
		t.Fatalf("without credentials: %d %s", status, b)
	}
	write(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("alice:secret"))))
	if status, b := c.putPlain(t, "app", p); status != http.StatusOK {
		t.Fatalf("%d %s", status, b)
	}
	if got := c.call(t, "app", "x"); got != "x" {
		t.Errorf("%q", got)
	}
	// What runs is named by digest: a tag that moves changes nothing, nor that the
	// registry is gone.
	s.Close()
	if got := c.call(t, "app", "y"); got != "y" {
		t.Errorf("%q", got)
	}
}

func withLabel(img v1.Image, value string) (v1.Image, error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg := *cf.Config.DeepCopy()
	cfg.Labels = map[string]string{"test": value}
	return mutate.Config(img, cfg)
}
