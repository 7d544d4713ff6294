package e2e

import (
	"bytes"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

// system makes a request of OpenFaaS's API with the cluster's password.
func (c *cluster) system(t testing.TB, method, path, body string) (int, string) {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(c.BasicAuth(), name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	h := &http.Client{Transport: basic{read("basic-auth-user"), read("basic-auth-password")}}
	return c.plainly(t, h, method, path, strings.NewReader(body))
}

type basic struct{ user, password string }

// RoundTrip implements http.RoundTripper.
func (b basic) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth(b.user, b.password)
	return http.DefaultTransport.RoundTrip(r)
}

func TestPlainFunctionsGetTheirSecretsInMemoryAlone(t *testing.T) {
	c := up(t, 1)
	c.pushTestImage(t, "plain/s")
	const value = "a-secret-that-is-nowhere-else"
	if status, b := c.putPlain(t, "s", api.Plain{Image: "plain/s", Secrets: []string{"api-key"}}); status != http.StatusBadRequest || !strings.Contains(b, "api-key") {
		t.Fatalf("without its secret: %d %s", status, b)
	}
	if status, b := c.system(t, "POST", "/system/secrets", `{"name":"api-key","value":"`+value+`"}`); status != http.StatusCreated {
		t.Fatalf("%d %s", status, b)
	}
	// By OpenFaaS's own API, as its users do.
	if status, b := c.system(t, "POST", "/system/functions", `{"service":"s","image":"plain/s","secrets":["api-key"],"labels":{"a":"b"}}`); status != http.StatusAccepted {
		t.Fatalf("%d %s", status, b)
	}
	if got := c.call(t, "s/read?path=/var/openfaas/secrets/api-key", ""); got != value {
		t.Fatalf("the secret is %q", got)
	}
	if got := c.call(t, "s/mode?path=/var/openfaas/secrets/api-key", ""); got != "400 10001 10001" {
		t.Errorf("mode, owner and reader are %s", got)
	}
	if status, b := c.system(t, "GET", "/system/secrets", ""); status != 200 || strings.Contains(b, value) || !strings.Contains(b, "api-key") {
		t.Errorf("%d %s", status, b)
	}
	files := 0
	if err := filepath.WalkDir(c.State(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		files++
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(value)) {
			t.Errorf("the secret is in %s", path)
		}
		return nil
	}); err != nil || files < 10 {
		t.Errorf("%d files looked at, %v", files, err)
	}
	c.call(t, "s/log", "a plain line")
	eventually(t, "the line is told by OpenFaaS's API", func() bool {
		status, b := c.system(t, "GET", "/system/logs?name=s&follow=false", "")
		return status == 200 && strings.Contains(b, "out a plain line")
	})
	status, b := c.system(t, "GET", "/system/function/s?usage=1", "")
	if status != 200 || !strings.Contains(b, `"invocationCount"`) || !strings.Contains(b, `"totalMemoryBytes"`) {
		t.Errorf("%d %s", status, b)
	}
	if status, b := c.system(t, "DELETE", "/system/secrets", `{"name":"api-key"}`); status/100 != 2 {
		t.Errorf("%d %s", status, b)
	}
}
