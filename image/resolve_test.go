package image

import (
	"context"
	"encoding/base64"
	"errors"
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
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestNamesMeanTheClustersImageFirst(t *testing.T) {
	own := "sha256:" + strings.Repeat("a", 64)
	r := &Resolver{Own: func(_ context.Context, repo, tag string) (string, error) {
		if repo == "team/app" && (tag == "latest" || tag == "v1" || tag == own) {
			return own, nil
		}
		return "", nil
	}}
	for ref, want := range map[string]string{"team/app": "team/app:latest", "team/app:v1": "team/app:v1", "team/app@" + own: "team/app:" + strings.Replace(own, ":", "-", 1)} {
		for _, resolve := range []func(context.Context, string) (string, string, error){r.Resolve, r.ResolveOwn} {
			full, digest, err := resolve(t.Context(), ref)
			if err != nil || full != want || digest != own || api.Repository(full) != "team/app" {
				t.Errorf("%s: %s %s %v", ref, full, digest, err)
			}
		}
	}
	for _, ref := range []string{"team/none", "alpine:3", "UPPER"} { // elsewhere, or not
		var e *api.Error
		if _, _, err := r.ResolveOwn(t.Context(), ref); !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Field != "image" || e.Remedy == "" {
			t.Errorf("%q of its own: %v", ref, err)
		}
	}
	for _, ref := range []string{"", "UPPER", "a b", "x:y:z", "../x"} {
		var e *api.Error
		if _, _, err := r.Resolve(t.Context(), ref); !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Remedy == "" {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func TestOtherRegistriesAreAskedWithTheFilesCredentials(t *testing.T) {
	private, locked := registry.New(registry.Logger(log.New(io.Discard, "", 0))), false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, pass, _ := req.BasicAuth(); locked && user+":"+pass != "alice:secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		private.ServeHTTP(w, req)
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(host + "/a/b:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	locked = true
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.json")
	r := &Resolver{Keychain: AuthFile(file)}
	for _, c := range []struct {
		content string
		ok      bool
	}{
		{`{}`, false},
		{fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("alice:wrong"))), false},
		{fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("alice:secret"))), true},
	} {
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		full, digest, err := r.Resolve(t.Context(), host+"/a/b:v1")
		if c.ok && (err != nil || digest != want.String() || full != host+"/a/b:v1") || !c.ok && api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %s %s %v", c.content, full, digest, err)
		}
	}
	if user, secret, err := AuthFile(file).Credentials(host); err != nil || user != "alice" || secret != "secret" {
		t.Errorf("%q %q %v", user, secret, err)
	}
	if _, _, err := r.Resolve(t.Context(), host+"/a/none:v1"); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("what is not there: %v", err)
	}
	if err := os.WriteFile(file, []byte("not json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Resolve(t.Context(), host+"/a/b:v1"); err == nil || strings.Contains(err.Error(), "not json") {
		t.Errorf("a file that does not parse: %v", err)
	}
}

func TestRegistriesWithoutTLSAreListed(t *testing.T) {
	tr := &Transport{Insecure: []string{"registry.lan:5000"}, Base: answering{}}
	for target, ok := range map[string]bool{"http://127.0.0.1:5000/v2/": true, "http://localhost/v2/": true, "http://[::1]:5000/v2/": true, "https://example.org/v2/": true,
		"http://registry.lan:5000/v2/": true, "http://registry.lan:5001/v2/": false, "http://10.0.0.7:5000/v2/": false, "http://localhost.example.org/v2/": false} {
		req, err := http.NewRequest(http.MethodGet, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.RoundTrip(req); (err == nil) != ok {
			t.Errorf("%s: %v", target, err)
		}
	}
}

type answering struct{}

// RoundTrip implements http.RoundTripper.
func (answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}
