package proxy_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/proxy"
)

func TestRoutesAdmitWhatTheyListAndNothingElse(t *testing.T) {
	w := start(t, func(c *proxy.Config) {
		c.Routes = []proxy.Route{
			{Name: "read", Functions: []string{"echo"}, Methods: []string{"GET"}, Paths: []string{"/v1/*", "/health"}, Timeout: time.Minute},
			{Name: "root", Functions: []string{"*.openfaas-fn"}, Methods: []string{"POST"}, Paths: []string{"/"}, Timeout: time.Minute},
		}
	}, "")
	asked := 0
	w.cluster.Intercept = func(http.ResponseWriter, *http.Request) bool { asked++; return false }
	for line, route := range map[string]string{
		"GET /function/echo/v1": "read", "GET /function/echo/v1/": "read", "GET /function/echo/v1/a?b=/../c": "read", "GET /function/echo/health": "read",
		"GET /function/echo/v1/%61b": "read", "GET /function/echo/v1/100%25": "read", "POST /function/echo": "root", "POST /function/echo/": "root",
		"GET /function/echo": "", "GET /function/echo/v1x": "", "GET /function/echo/health/": "", "GET /function/echo/v1/../admin": "",
		"GET /function/echo/v1/%2e%2e/admin": "", "GET /function/echo/v1/..%2fadmin": "", "GET /function/echo/v1/%252e%252e/admin": "", "GET /function/echo/v1/..%252Fadmin": "", "GET /function/echo/v1//admin": "", "GET /function/echo/v1/a%5Cb": "",
		"GET /function/echo/v1/;/..": "", "PUT /function/echo/v1": "", "DELETE /function/echo/health": "", "POST /function/echo.other/": "", "TRACE /function/echo/v1": "",
	} {
		method, path, _ := strings.Cut(line, " ")
		before := w.counted("faasd_sec_proxy_requests_total", "ok", route)
		asked = 0
		// A client would clean the path.
		c := raw(t, w, method+" "+path+" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		status := make([]byte, 12)
		if _, err := c.Read(status); err != nil {
			t.Fatal(err)
		}
		if route == "" {
			if string(status) != "HTTP/1.1 403" || asked != 0 {
				t.Errorf("%s: %s, the gateway was asked %d times", line, status, asked)
			}
			continue
		}
		if string(status) != "HTTP/1.1 201" {
			t.Errorf("%s: %s", line, status)
		}
		waitFor(t, func() bool { return w.counted("faasd_sec_proxy_requests_total", "ok", route) == before+1 })
	}
}

func TestWhatIsNoFunctionIsRefusedWithARemedy(t *testing.T) {
	w := start(t, nil, "")
	refused(t, w.do("GET", "/system/functions", nil), 404, api.CodeNotFound)
	refused(t, w.do("POST", "/async-function/echo", strings.NewReader("x")), 400, api.CodeInvalid)
	refused(t, w.do("POST", "/function/echo", strings.NewReader("x"), "X-Callback-Url", "http://elsewhere"), 400, api.CodeInvalid)
	refused(t, w.do("POST", "/function/No_Name", strings.NewReader("x")), 400, api.CodeInvalid)
	refused(t, w.do("GET", "/function/echo", nil, "X-Large", strings.Repeat("x", 32<<10)), 431, api.CodeTooLarge)
	w = start(t, func(c *proxy.Config) { c.MaxBody = 1000 }, "")
	refused(t, w.do("POST", "/function/echo", strings.NewReader(strings.Repeat("x", 1001))), 413, api.CodeTooLarge)
}

func TestTokenIsDemanded(t *testing.T) {
	const token = "0123456789abcdef0123"
	w := start(t, func(c *proxy.Config) { c.TokenFile = "x" }, token)
	asked := 0
	w.cluster.Intercept = func(http.ResponseWriter, *http.Request) bool { asked++; return false }
	for _, h := range []string{"", "Bearer ", "Bearer 0123456789abcdef0124", "Bearer " + token + "x", token, "Basic " + token} {
		refused(t, w.do("GET", "/function/echo", nil, "Proxy-Authorization", h), 401, api.CodeUnauthorized)
	}
	if asked != 0 {
		t.Error("the gateway was asked for somebody without a token")
	}
	// A page may show it, whatever its origin.
	res := w.do("GET", "/function/echo", nil, "Proxy-Authorization", "Bearer "+token, "Origin", "https://elsewhere.example", "Host", "proxy.example")
	if read(t, res); res.StatusCode != 201 || res.Header.Get("Echo-Proxy-Authorization") != "" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}

// A page in a browser on this machine can reach loopback, with its own name that
// resolves here, or across origins.
func TestPagesOfOtherOriginsAreRefused(t *testing.T) {
	w := start(t, nil, "")
	refused(t, w.do("POST", "/function/echo", strings.NewReader("x"), "Origin", "https://elsewhere.example"), 403, api.CodeForbidden)
	refused(t, w.do("POST", "/function/echo", strings.NewReader("x"), "Origin", "null"), 403, api.CodeForbidden)
	refused(t, w.do("POST", "/function/echo", strings.NewReader("x"), "Host", "rebound.example"), 403, api.CodeForbidden)
	if res := w.do("POST", "/function/echo", strings.NewReader("x"), "Origin", w.url); res.StatusCode != 201 {
		t.Errorf("its own origin: %d", res.StatusCode)
	}
	// What a page shows or links to comes without an Origin.
	for site, status := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 201, "none": 201} {
		res := w.do("GET", "/function/echo", nil, "Sec-Fetch-Site", site)
		if read(t, res); res.StatusCode != status {
			t.Errorf("Sec-Fetch-Site %s: %d, want %d", site, res.StatusCode, status)
		}
	}
}

func TestConfigurationIsReadStrictly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "proxy.yml")
	good := `listen: 127.0.0.1:0
metrics: "[::1]:0"
gateway: http://10.0.0.1:8080
token_file: token
max_body: 64Mi
passphrase_files: {billing: /run/pass}
routes:
  - {name: bills, functions: [bill.prod], identity: billing, methods: [POST], paths: [/v1/*], stream: true, timeout: 30s}
  - functions: ["*.dev", hello]
`
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := proxy.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.TokenFile != filepath.Join(dir, "token") || c.MaxBody != 64<<20 || c.Routes[0].Timeout != 30*time.Second || c.Routes[1].Name != "route-2" ||
		c.Routes[1].Timeout != proxy.DefaultTimeout || strings.Join(c.Identities(), " ") != "billing " {
		t.Errorf("%+v", c)
	}
	const route = "routes: [{functions: [f]}]\n"
	for text, field := range map[string]string{
		"listen: 0.0.0.0:80\n" + route:                                     "listen",
		"listen: localhost:80\n" + route:                                   "listen",
		"listen: :80\n" + route:                                            "listen",
		"listen: 10.0.0.1:80\ntoken_file: t\n" + route:                     "listen",
		"listen: 10.0.0.1:80\ntls: {certificate: c, key: k}\n" + route:     "listen",
		"listen: 'unix:'\n" + route:                                        "listen",
		"metrics: 10.0.0.1:9\n" + route:                                    "metrics",
		"tls: {certificate: c}\n" + route:                                  "tls",
		"max_body: lots\n" + route:                                         "max_body",
		"max_callers: 0\n" + route:                                         "max_body, max_callers",
		"listen: 127.0.0.1:1\n":                                            "routes",
		"":                                                                 "routes",
		"routes: [{}]\n":                                                   "routes[0].functions",
		"routes: [{functions: [A]}]\n":                                     "routes[0].functions[0]",
		"routes: [{functions: [f], methods: [get]}]\n":                     "routes[0].methods[0]",
		"routes: [{functions: [f], methods: [CONNECT]}]\n":                 "routes[0].methods[0]",
		"routes: [{functions: [f], paths: [a]}]\n":                         "routes[0].paths[0]",
		"routes: [{functions: [f], paths: [/a/../b]}]\n":                   "routes[0].paths[0]",
		"routes: [{functions: [f], paths: ['/a*']}]\n":                     "routes[0].paths[0]",
		"routes: [{functions: [f], timeout: 5}]\n":                         "routes[0].timeout",
		"routes: [{functions: [f], timeout: 48h}]\n":                       "routes[0].timeout",
		"routes: [{functions: [f], name: x}, {functions: [g], name: x}]\n": "routes[1].name",
		"routs: []\n":                                                      "proxy.yml",
		route + "routes: []\n":                                             "proxy.yml",
		route + "---\nlisten: x\n":                                         "proxy.yml",
		"routes: [{function: [f]}]\n":                                      "proxy.yml",
	} {
		_, err := proxy.Parse("proxy.yml", dir, []byte(text))
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Field != field || e.Remedy == "" {
			t.Errorf("%q: %v, want field %s", text, err, field)
		}
	}
	if _, err := proxy.Parse("proxy.yml", dir, []byte("listen: 10.0.0.1:80\ntls: {certificate: c, key: k}\ntoken_file: t\n"+route)); err != nil {
		t.Errorf("TLS and a token: %v", err)
	}
}

func TestShortTokensAreRefused(t *testing.T) {
	cfg := proxy.DefaultConfig()
	cfg.TokenFile = "x"
	for _, token := range []string{"", "short"} {
		_, err := proxy.New(t.Context(), cfg, proxy.Deps{Token: token})
		var e *api.Error
		if !errors.As(err, &e) || e.Field != "token_file" {
			t.Errorf("%q: %v", token, err)
		}
	}
}
