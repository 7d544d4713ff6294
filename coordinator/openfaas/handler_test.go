package openfaas

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestEveryRouteAnswersAsItsClientsExpect(t *testing.T) {
	type m = map[string]any
	steps := []struct {
		name, method, path string
		body               any
		status             int
		says               string // in body or headers
	}{
		{"an empty list", "GET", "/system/functions", nil, 200, "[]"},
		{"PUT of what is absent", "PUT", "/system/functions", m{"service": "f", "image": "i"}, 404, "no function"},
		{"POST", "POST", "/system/functions", m{"service": "f", "image": "i", "network": "func", "labels": m{"a": "b"}, "limits": m{"memory": "128Mi"}, "requests": m{}, "envProcess": "cat"}, 202, ""},
		{"POST of what is there updates it", "POST", "/system/functions", m{"service": "f", "image": "j", "envVars": m{"k": "v"}}, 202, ""},
		{"PUT", "PUT", "/system/functions/", m{"service": "f", "image": "repo/j:1", "namespace": "openfaas-fn", "annotations": m{"x": "y"}, "limits": m{"cpu": "100m"}}, 202, ""},
		{"bad JSON", "POST", "/system/functions", "{", 400, "not JSON"},
		{"a field of another type", "POST", "/system/functions", m{"service": 3}, 400, "field service"},
		{"a bad quantity", "POST", "/system/functions", m{"service": "f", "image": "i", "limits": m{"memory": "128Zi"}}, 400, "limits.memory"},
		{"a bad name", "POST", "/system/functions", m{"service": "F_", "image": "i"}, 400, "function name"},
		{"no name", "POST", "/system/functions", m{"image": "i"}, 400, "empty"},
		{"a namespace that is not there", "POST", "/system/functions", m{"service": "f", "image": "i", "namespace": "none"}, 400, `no namespace "none"`},
		{"a secret that is not there", "POST", "/system/functions", m{"service": "f", "image": "i", "secrets": []string{"s"}}, 400, "no secret s"},
		{"describe", "GET", "/system/function/f", nil, 200, `"image":"repo/j:1"`},
		{"describe in a namespace", "GET", "/system/function/f/?namespace=openfaas-fn", nil, 200, `"limits":{"cpu":"100m"}`},
		{"describe by full name", "GET", "/system/function/f.openfaas-fn", nil, 200, `"name":"f"`},
		{"usage", "GET", "/system/function/f?usage=1", nil, 200, `"usage":{"cpu":7,"totalMemoryBytes":8}`},
		{"describe what is absent", "GET", "/system/function/g", nil, 404, "no function"},
		{"another namespace has it not", "GET", "/system/functions?namespace=none", nil, 200, "[]"},
		{"scale", "POST", "/system/scale-function/f", m{"serviceName": "f", "replicas": 3}, 202, ""},
		{"scale by query", "POST", "/system/scale-function/f?namespace=openfaas-fn", m{"service": "f", "replicas": 4}, 202, ""},
		{"scaled", "GET", "/system/function/f", nil, 200, `"replicas":4,"availableReplicas":1`},
		{"scale what is absent", "POST", "/system/scale-function/g", m{"replicas": 3}, 404, ""},
		{"scale to nothing said", "POST", "/system/scale-function/f", m{}, 400, "replicas"},
		{"scale to less than nothing", "POST", "/system/scale-function/f", m{"replicas": -1}, 400, ""},
		{"no secrets", "GET", "/system/secrets", nil, 200, "[]"},
		{"create a secret", "POST", "/system/secrets", m{"name": "s", "value": "v"}, 201, ""},
		{"create it again", "POST", "/system/secrets", m{"name": "s", "value": "w"}, 409, "already exists"},
		{"secrets have no value", "GET", "/system/secrets?namespace=openfaas-fn", nil, 200, `[{"name":"s","namespace":"openfaas-fn"}]`},
		{"update it", "PUT", "/system/secrets", m{"name": "s", "rawValue": []byte{0, 255}}, 202, ""},
		{"update what is absent", "PUT", "/system/secrets", m{"name": "t", "value": "v"}, 404, ""},
		{"a bad name of a secret", "POST", "/system/secrets", m{"name": "../s", "value": "v"}, 400, ""},
		{"a secret of nothing", "POST", "/system/secrets", m{"name": "u"}, 400, "value"},
		{"remove it", "DELETE", "/system/secrets", m{"name": "s", "namespace": "openfaas-fn"}, 202, ""},
		{"remove what is absent", "DELETE", "/system/secrets?namespace=openfaas-fn", m{"name": "s"}, 404, ""},
		{"namespaces", "GET", "/system/namespaces", nil, 200, `["openfaas-fn"]`},
		{"create a namespace", "POST", "/system/namespace/", m{"name": "dev", "labels": m{"openfaas": "1"}}, 201, ""},
		{"create it again", "POST", "/system/namespace/dev", m{"name": "dev"}, 409, ""},
		{"a bad namespace", "POST", "/system/namespace/", m{"name": "D"}, 400, "namespace"},
		{"two names", "PUT", "/system/namespace/dev", m{"name": "prod"}, 400, ""},
		{"a namespace", "GET", "/system/namespace/dev", nil, 200, `{"name":"dev","labels":{"openfaas":"1"}`},
		{"update it", "PUT", "/system/namespace/dev", m{"name": "dev", "annotations": m{"a": "b"}}, 202, ""},
		{"update what is absent", "PUT", "/system/namespace/prod", m{"name": "prod"}, 404, ""},
		{"deploy there by query", "POST", "/system/functions?namespace=dev", m{"service": "f", "image": "i"}, 202, ""},
		{"list there", "GET", "/system/functions?namespace=dev", nil, 200, `"namespace":"dev"`},
		{"two namespaces", "DELETE", "/system/functions?namespace=dev", m{"functionName": "f", "namespace": "openfaas-fn"}, 400, "different"},
		{"delete there", "DELETE", "/system/functions?namespace=dev", m{"functionName": "f"}, 202, ""},
		{"delete it", "DELETE", "/system/namespace/dev", m{"name": "dev"}, 202, ""},
		{"delete what is absent", "DELETE", "/system/namespace/dev", nil, 404, ""},
		{"delete", "DELETE", "/system/functions", m{"functionName": "f"}, 202, ""},
		{"delete what is absent", "DELETE", "/system/functions", m{"functionName": "f"}, 404, "text/plain"},
		{"info", "GET", "/system/info", nil, 200, `{"provider":{"provider":"faasd-sec","orchestration":"containerd","version":{"release":"1","sha":"2","commit_message":"3"}},"version":{"release":"1","sha":"2","commit_message":"3"},"arch":"amd64"}`},
		{"another method", "PATCH", "/system/functions", nil, 405, "Allow: GET, POST, PUT, DELETE"},
		{"another path", "GET", "/system/alerts", nil, 404, ""},
	}
	g := serve(t, newDomain())
	for _, s := range steps {
		if status, body := g.do(s.method, s.path, s.body); status != s.status || !strings.Contains(body, s.says) {
			t.Errorf("%s: %s %s: %d %s, want %d with %q", s.name, s.method, s.path, status, body, s.status, s.says)
		}
	}
}

func TestWhatWasDeployedComesBackVerbatim(t *testing.T) {
	d := newDomain()
	g := serve(t, d)
	if status, body := g.do("POST", "/system/functions", `{"service":"f","image":"Docker.io/a/b:latest"}`); status != 202 {
		t.Fatal(status, body)
	}
	var got map[string]any
	_, body := g.do("GET", "/system/function/f", nil)
	if err := json.NewDecoder(strings.NewReader(body)).Decode(&got); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{"image": "Docker.io/a/b:latest", "labels": "map[]", "annotations": "map[]", "envVars": "<nil>", "limits": "<nil>", "requests": "<nil>", "mode": "plain"} {
		if fmt.Sprint(got[field]) != want {
			t.Errorf("%s is %v, want %s", field, got[field], want)
		}
	}
}

func TestSealedFunctionsAreListedAndLeftAlone(t *testing.T) {
	d := newDomain()
	d.functions["s.openfaas-fn"] = Function{FunctionStatus: api.FunctionStatus{Name: "s.openfaas-fn", Sealed: true, Image: "s@sha256:1", UpdatedAt: 1, Labels: map[string]string{"a": "b"}}}
	g := serve(t, d)
	if _, body := g.do("GET", "/system/functions", nil); !strings.Contains(body, `"labels":{"a":"b","com.faasd-sec.sealed":"true"}`) || !strings.Contains(body, `"mode":"sealed"`) {
		t.Error(body)
	}
	for method, body := range map[string]string{"POST": `{"service":"s","image":"i"}`, "PUT": `{"service":"s","image":"i"}`, "DELETE": `{"functionName":"s"}`} {
		if status, text := g.do(method, "/system/functions", body); status != 403 || !strings.Contains(text, "faasd-sec deploy") {
			t.Errorf("%s: %d %s", method, status, text)
		}
	}
	if status, body := g.do("GET", "/system/logs?name=s", nil); status != 200 {
		t.Error(status, body)
	}
	if status, body := g.do("POST", "/system/scale-function/s", `{"replicas":2}`); status != 202 || d.functions["s.openfaas-fn"].Desired != 2 {
		t.Error(status, body)
	}
}

func TestNothingIsServedWithoutThePassword(t *testing.T) {
	g := serve(t, newDomain())
	for name, header := range map[string]string{"none": "", "an empty token": "Bearer ", "a token": "Bearer x", "no base64": "Basic %%", "no colon": "Basic YQ==",
		"another user": "Basic cm9vdDpzZWNyZXQ=", "another password": "Basic YWRtaW46c2VjcmV0MQ=="} {
		status, body := g.do("GET", "/system/functions", nil, func(r *http.Request) {
			r.Header.Del("Authorization")
			if header != "" {
				r.Header.Set("Authorization", header)
			}
		})
		if status != 401 || !strings.HasPrefix(body, "invalid credentials\n") || !strings.Contains(body, `WWW-Authenticate: Basic realm="Restricted"`) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	for _, path := range []string{"/system/namespaces", "/system/namespace/x", "/system/info", "/system/logs?name=f", "/system/secrets", "/system/nothing"} {
		if status, _ := g.do("GET", path, nil, func(r *http.Request) { r.Header.Del("Authorization") }); status != 401 {
			t.Errorf("%s: %d", path, status)
		}
	}
}

func TestAGatewayWithoutAPasswordServesNobody(t *testing.T) {
	g := serve(t, newDomain(), func(c *Config, _ *Deps) { c.Credentials = nil })
	g.user, g.pass = "", ""
	if status, body := g.do("GET", "/system/functions", nil); status != 403 || !strings.Contains(body, "-basic-auth-dir") {
		t.Error(status, body)
	}
}

func TestWrongPasswordsAreLimitedByAddress(t *testing.T) {
	g := serve(t, newDomain())
	now := time.Unix(1000, 0)
	g.h.guesses.now = func() time.Time { return now }
	g.pass = "wrong"
	for i := range mostGuesses {
		if status, body := g.do("GET", "/system/info", nil); status != 401 {
			t.Fatalf("guess %d: %d %s", i, status, body)
		}
	}
	g.pass = "secret"
	if status, body := g.do("GET", "/system/info", nil); status != 429 || !strings.Contains(body, "Retry-After: 1") {
		t.Fatalf("after all guesses: %d %s", status, body)
	}
	g.address = netip.MustParseAddr("192.0.2.2")
	if status, _ := g.do("GET", "/system/info", nil); status != 200 {
		t.Errorf("another address: %d", status)
	}
	g.address, now = netip.MustParseAddr("192.0.2.1"), now.Add(guessEvery)
	if status, _ := g.do("GET", "/system/info", nil); status != 200 {
		t.Errorf("a moment later: %d", status)
	}
}

func TestTheMemoryOfGuessersIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	g := newGuesses(func() time.Time { return now })
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	limited := 0
	for i := range 3 * mostGuessers {
		if g.judge(at(i), false) > 0 {
			limited++
		}
	}
	if len(g.by) > mostGuessers+1 || limited == 0 {
		t.Errorf("%d addresses are remembered, %d guesses refused", len(g.by), limited)
	}
	now = now.Add(2 * mostGuesses * guessEvery)
	if g.judge(at(5*mostGuessers), false) != 0 || len(g.by) > 2 {
		t.Errorf("%d are remembered after all had time", len(g.by))
	}
}

func TestALogIsLinesOfJSON(t *testing.T) {
	d := newDomain()
	d.lines = []LogLine{{"i-1", time.Unix(5, 0), "a"}, {"i-2", time.Unix(6, 0), "b\"c"}}
	d.functions["f.openfaas-fn"] = Function{FunctionStatus: api.FunctionStatus{Name: "f.openfaas-fn", Plain: &api.Plain{}}}
	g := serve(t, d)
	status, body := g.do("GET", "/system/logs?name=f&tail=2&since=2026-01-02T03:04:05Z&follow=false&instance=i", nil)
	want := `{"name":"f","namespace":"openfaas-fn","instance":"i-1","timestamp":"1970-01-01T00:00:05Z","text":"a"}` + "\n" +
		`{"name":"f","namespace":"openfaas-fn","instance":"i-2","timestamp":"1970-01-01T00:00:06Z","text":"b\"c"}` + "\n" + "\nContent-Type: application/x-ndjson"
	if status != 200 || body != want {
		t.Errorf("%d %s", status, body)
	}
	if q := d.query; q.Tail != 2 || q.Follow || q.Instance != "i" || !q.Since.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%+v", q)
	}
	for query, want := range map[string]int{"": 422, "?name=f&tail=x": 422, "?name=f&since=yesterday": 422, "?name=f&follow=maybe": 422, "?name=F": 422, "?name=g": 404} {
		if status, body := g.do("GET", "/system/logs"+query, nil); status != want {
			t.Errorf("%q: %d %s, want %d", query, status, body, want)
		}
	}
}

func TestCredentialsAreMadeOnceAndForOneUser(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "auth")
	if _, err := LoadCredentials(dir); api.CodeOf(err) != api.CodeInvalid {
		t.Fatal(err)
	}
	var before []byte
	for range 2 {
		if err := EnsureCredentials(dir); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, PasswordFile))
		if err != nil || len(b) != 64 || before != nil && string(before) != string(b) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		before = b
	}
	info, err := os.Stat(filepath.Join(dir, PasswordFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	c, err := LoadCredentials(dir)
	if err != nil || !c.match("admin", string(before)) || c.match("admin", "") || c.match("", string(before)) {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, UserFile), []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCredentials(dir); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("an empty user: %v", err)
	}
}

func FuzzRequests(f *testing.F) {
	f.Add("functions", `{"service":"f","image":"i","limits":{"cpu":"1"}}`)
	f.Add("secrets", `{"name":"s","rawValue":"AA=="}`)
	f.Add("scale-function/f", `{"replicas":1}`)
	g := serve(f, newDomain())
	f.Fuzz(func(t *testing.T, path, body string) {
		if strings.ContainsAny(path, "\x00?#% \t\r\n") {
			return
		}
		req, err := http.NewRequest("POST", "http://gateway/system/"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		req.SetBasicAuth("admin", "secret")
		resp, err := g.client.Do(req)
		if err != nil {
			return
		}
		resp.Body.Close()
		if resp.StatusCode >= 500 {
			t.Errorf("%s %q: %d", path, body, resp.StatusCode)
		}
	})
}
