package openfaas

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func testInvoke(t *testing.T, c *cluster) {
	c.function(t, "verbs", "env", message{"envVars": message{"custom_env": "custom_env_value"}})
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		r := c.cli.invoke(method, "verbs/a/b?testing=1", "body")
		for _, says := range []string{"Http_Method=" + method, "Http_Query=testing=1", "Http_Path=/a/b", "custom_env=custom_env_value", "Http_X_Call_Id=", "Http_X_Start_Time=", "Http_X_Forwarded_For=127.0.0.1",
			"Http_X_Forwarded_Host=" + strings.TrimPrefix(c.cli.gateway, "http://")} {
			c.want(t, r, 200, says)
		}
		for _, h := range []string{"X-Call-Id", "X-Start-Time", "X-Duration-Seconds", "X-Served-By"} {
			if r.header.Get(h) == "" {
				t.Errorf("%s: the reply has no %s: %v", method, h, r.header)
			}
		}
	}
	if r := c.cli.invoke("HEAD", "verbs.openfaas-fn", ""); r.status != 200 || r.body != "" || r.header.Get("X-Call-Id") == "" {
		t.Errorf("HEAD: %+v", r)
	}
	if r := c.cli.invoke("GET", "verbs", "", func(r *http.Request) { r.Header.Set("X-Call-Id", "mine-1") }); r.header.Get("X-Call-Id") != "mine-1" || !strings.Contains(r.body, "Http_X_Call_Id=mine-1") {
		t.Errorf("the call's id was not kept: %v %s", r.header, r.body)
	}
	c.internal(t, c.cli.invoke("PROPFIND", "verbs", ""), 405, "")
	c.internal(t, c.cli.invoke("GET", "none", ""), 404, "")
	c.function(t, "redirector", "redirect", message{"envVars": message{"destination": "http://example.com"}})
	if r := c.cli.invoke("GET", "redirector", ""); r.status != 302 || r.header.Get("Location") != "http://example.com" {
		t.Errorf("%d %v", r.status, r.header)
	}
	c.function(t, "failing", "false", nil)
	if r := c.cli.invoke("GET", "failing", ""); r.status != 500 || r.header.Get("X-OpenFaaS-Internal") != "" {
		t.Errorf("a function's own error: %d %v", r.status, r.header)
	}
}

func testInvokeLimits(t *testing.T, c *cluster) {
	// What waits is told soon enough for the first to be still there.
	one := message{"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "1"}
	c.function(t, "full", "sleep 40s", message{"envVars": message{"max_inflight": "1", "exec_timeout": "50s"}, "labels": one})
	first := c.begin(t, "full")
	second := make(chan reply, 1)
	go func() { second <- c.cli.invoke("GET", "full", "") }()

	c.function(t, "slow", "sleep 20s", message{"envVars": message{"exec_timeout": "2s"}})
	c.internal(t, c.cli.invoke("GET", "slow", ""), 504, "")
	c.function(t, "narrow", "sleep 3s", message{"envVars": message{"max_inflight": "1"}, "labels": one})
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int]int{}
	for range 4 {
		wg.Go(func() {
			r := c.cli.invoke("GET", "narrow", "")
			mu.Lock()
			defer mu.Unlock()
			seen[r.status]++
		})
	}
	wg.Wait()
	if seen[200] == 0 || seen[200]+seen[429] != 4 {
		t.Errorf("calls of a function that takes one at a time: %v", seen)
	}

	r := <-second
	c.internal(t, r, 429, "")
	if r.header.Get("Retry-After") == "" {
		t.Errorf("when to call again is not said: %v", r.header)
	}
	c.want(t, <-first, 200, "slept")
}

// begin makes a call, and returns once the function works on it. The function must
// not have been called before.
func (c *cluster) begin(t *testing.T, fn string) <-chan reply {
	t.Helper()
	out := make(chan reply, 1)
	go func() { out <- c.cli.invoke("GET", fn, "") }()
	eventually(t, fn+" is called", func() error { return c.logged(fn, "Forking fprocess") })
	return out
}

// received is the reply to a call that began.
func received(t *testing.T, under <-chan reply) reply {
	t.Helper()
	limit := time.NewTimer(45 * time.Second)
	defer limit.Stop()
	select {
	case r := <-under:
		return r
	case <-limit.C:
		t.Fatal("there is no reply")
		return reply{}
	}
}

// logged complains while no line of a function's log has the text.
func (c *cluster) logged(fn, text string) error {
	lines, err := c.cli.logs(fn, 0)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if strings.Contains(l.Text, text) {
			return nil
		}
	}
	return fmt.Errorf("%q is not in %+v", text, lines)
}

func testContract(t *testing.T, c *cluster) {
	c.function(t, "writer", "touch /tmp/x", message{"readOnlyRootFilesystem": true})
	c.want(t, c.cli.invoke("POST", "writer", ""), 200, "")
	c.function(t, "reader", "touch /x", message{"readOnlyRootFilesystem": true})
	c.want(t, c.cli.invoke("POST", "reader", ""), 500, "")
	c.function(t, "pass", "cat", nil)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	if r := c.cli.invoke("POST", "pass", big); r.status != 200 || r.body != big {
		t.Errorf("%d with %d bytes", r.status, len(r.body))
	}
}

// testFaasCLI goes through what a user of faas-cli does, in one piece.
func testFaasCLI(t *testing.T, c *cluster) {
	steps := []struct {
		what string
		do   func() reply
		is   int
	}{
		{"login", c.cli.login, 200},
		{"secret create", func() reply { return c.cli.secret("POST", "api-key", "openfaas-fn", "v1") }, 201},
		{"secret list", func() reply { return c.cli.secrets("openfaas-fn") }, 200},
		{"deploy", func() reply {
			return c.cli.deploy(message{"service": "app", "image": testImage, "envProcess": "cat /var/openfaas/secrets/api-key", "secrets": []string{"api-key"}, "namespace": "openfaas-fn"})
		}, 202},
		{"deploy again", func() reply {
			return c.cli.deploy(message{"service": "app", "image": testImage, "envProcess": "cat /var/openfaas/secrets/api-key", "secrets": []string{"api-key"}, "namespace": "openfaas-fn", "labels": message{"a": "b"}})
		}, 202},
		{"list", func() reply { return c.cli.list("openfaas-fn") }, 200},
		{"describe", func() reply { return c.cli.describe("app", "openfaas-fn") }, 200},
		{"invoke", func() reply { return c.cli.invoke("POST", "app", "x") }, 200},
		{"scale", func() reply { return c.cli.scale("app", "openfaas-fn", 1) }, 202},
		{"namespaces", func() reply { return c.cli.send("GET", "/system/namespaces", nil) }, 200},
		{"version", func() reply { return c.cli.send("GET", "/system/info", nil) }, 200},
		{"logs", func() reply {
			_, err := c.cli.logs("app", 1)
			if err != nil {
				return reply{body: fmt.Sprint(err)}
			}
			return reply{status: 200}
		}, 200},
		{"secret update", func() reply { return c.cli.secret("PUT", "api-key", "openfaas-fn", "v2") }, 202},
		{"remove", func() reply { return c.cli.remove("app", "openfaas-fn") }, 202},
		{"secret remove", func() reply { return c.cli.secret("DELETE", "api-key", "openfaas-fn", "") }, 202},
	}
	for _, s := range steps {
		if r := s.do(); r.status != s.is {
			t.Fatalf("%s: %d %s, want %d", s.what, r.status, r.body, s.is)
		}
	}
}

// testEvents calls functions with structured CloudEvents: raw, as data, and for an
// event in return.
func testEvents(t *testing.T, c *cluster) {
	const event = `{"specversion":"1.0","id":"7","source":"/me","type":"t","data":{"a":1}}`
	of := func(mode string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Content-Type", "application/cloudevents+json")
			r.Header.Set("X-Faasd-Sec-Events", mode)
			r.Header.Set("X-Call-Id", "event-1")
		}
	}
	c.function(t, "raw", "cat", nil)
	if r := c.cli.invoke("POST", "raw", event, of("")); r.status != 200 || r.body != event {
		t.Errorf("as it is: %d %q", r.status, r.body)
	}
	if r := c.cli.invoke("POST", "raw", event, of("binary")); r.status != 200 || r.body != `{"a":1}` || r.header.Get("Ce-Type") != "io.faasd-sec.call.result" || r.header.Get("Ce-Id") != "event-1" {
		t.Errorf("binary: %d %q %v", r.status, r.body, r.header)
	}
	if r := c.cli.invoke("POST", "raw", event, of("structured")); r.status != 200 || r.header.Get("Content-Type") != "application/cloudevents+json" ||
		!strings.Contains(r.body, `"source":"/function/raw.openfaas-fn"`) || !strings.Contains(r.body, `"data_base64":"eyJhIjoxfQ=="`) {
		t.Errorf("structured: %d %q %v", r.status, r.body, r.header)
	}
	c.function(t, "data", "env", message{"annotations": message{"com.faasd-sec.events": "data"}})
	c.want(t, c.cli.invoke("POST", "data", event, of("")), 200, "Http_Ce_Id=7")
	c.internal(t, c.cli.invoke("POST", "data", `{"specversion":"1.0","id":"7","source":"/me"}`, of("")), 400, "type")
}
