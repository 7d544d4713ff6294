package openfaas

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOpenFaaS runs all lines against one cluster: each makes what it needs and
// removes it.
func TestOpenFaaS(t *testing.T) {
	c := up(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"auth", testAuth}, {"registry", testRegistry}, {"functions", testFunctions}, {"verbatim", testVerbatim}, {"readiness", testReadiness}, {"usage", testUsage},
		{"scale", testScale}, {"secrets", testSecrets}, {"namespaces", testNamespaces}, {"info", testInfo}, {"healthz", testHealthz},
		{"logs", testLogs}, {"invoke", testInvoke}, {"limits of invocations", testInvokeLimits}, {"contract", testContract}, {"events", testEvents}, {"async", testAsync},
		{"async cancelled", testAsyncCancelled}, {"async retries", testAsyncRetries}, {"faas-cli", testFaasCLI}, {"faasd-sec", testOwnCLI},
		{"many functions", testManyFunctions}, {"replicas at once", testReplicasAtOnce}, {"scale by throughput", testScaleByThroughput},
		{"logs at once", testLogsAtOnce}, {"secret update", testSecretUpdate},
		{"ready late", testReadyLate}, {"no endpoint", testNoEndpoint}, {"stop", testStop}, {"node death", testNodeDeath},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, c) })
	}
}

// function deploys the test image as a function that is removed with the test.
func (c *cluster) function(t *testing.T, name, process string, more message) {
	t.Helper()
	d := message{"service": name, "image": testImage, "envProcess": process, "network": "func_functions"}
	for k, v := range more {
		d[k] = v
	}
	if err := want(c.cli.deploy(d), http.StatusAccepted, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.cli.remove(name, "") })
}

// testRegistry: images are pushed with the same password, and deployed by the name
// under which they were pushed.
func testRegistry(t *testing.T, c *cluster) {
	host := strings.TrimPrefix(c.Gateway(), "http://")
	for _, header := range []string{"", "Basic YWRtaW46d3Jvbmc="} {
		r := c.cli.send("GET", "/v2/", nil, func(r *http.Request) { r.Header.Set("Authorization", header) })
		if err := want(r, 401, ""); err != nil || !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Basic ") || r.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
			t.Errorf("%q: %v %v", header, err, r.header)
		}
	}
	c.want(t, c.cli.send("GET", "/v2/test/watchdog/manifests/latest", nil), 401, "")
	c.want(t, c.cli.send("GET", "/v2/test/watchdog/manifests/latest", nil, func(r *http.Request) { r.SetBasicAuth(c.cli.user, c.cli.password) }), 200, "layers")
	c.function(t, "own-image", "cat", message{"image": host + "/" + testImage})
	c.want(t, c.cli.invoke("POST", "own-image", "of the gateway itself"), 200, "of the gateway itself")
	if s, err := c.cli.status("own-image"); err != nil || s.Image != host+"/"+testImage {
		t.Errorf("%+v, %v", s, err)
	}
}

func testAuth(t *testing.T, c *cluster) {
	paths := []string{"functions", "function/f", "secrets", "namespaces", "namespace/x", "info", "logs?name=f"}
	for _, header := range []string{"", "Bearer ", "Basic YWRtaW46d3Jvbmc="} {
		for _, p := range paths {
			r := c.cli.send("GET", "/system/"+p, nil, func(r *http.Request) {
				r.Header.Del("Authorization")
				if header != "" {
					r.Header.Set("Authorization", header)
				}
			})
			if err := want(r, 401, "invalid credentials"); err != nil || r.header.Get("WWW-Authenticate") != `Basic realm="Restricted"` {
				t.Errorf("%s with %q: %v %v", p, header, err, r.header)
			}
		}
	}
	c.want(t, c.cli.login(), 200, "[")
	for _, path := range []string{"/function/none", "/async-function/none", "/healthz"} {
		if r := c.cli.send("GET", path, nil); r.status == 401 || r.status == 403 {
			t.Errorf("%s wants credentials: %d", path, r.status)
		}
	}
}

func testFunctions(t *testing.T, c *cluster) {
	d := message{"service": "crud", "image": testImage, "envProcess": "cat"}
	c.want(t, c.cli.send("PUT", "/system/functions", d), 404, "")
	c.want(t, c.cli.send("POST", "/system/functions", d), 202, "")
	c.want(t, c.cli.send("POST", "/system/functions", d), 202, "") // again: it is updated
	c.want(t, c.cli.send("PUT", "/system/functions", message{"service": "crud", "image": testImage, "envProcess": "env", "namespace": "openfaas-fn"}), 202, "")
	for name, bad := range map[string]any{"JSON": "{", "name": message{"service": "_", "image": testImage}, "namespace": message{"service": "f", "image": testImage, "namespace": "none"},
		"secret": message{"service": "f", "image": testImage, "secrets": []string{"none"}}, "limit": message{"service": "f", "image": testImage, "limits": message{"memory": "x"}},
		"image": message{"service": "f", "image": "no image"}} {
		if err := want(c.cli.send("POST", "/system/functions", bad), 400, ""); err != nil {
			t.Errorf("bad %s: %v", name, err)
		}
	}
	c.want(t, c.cli.list(""), 200, `"name":"crud"`)
	c.want(t, c.cli.send("GET", "/system/functions/?namespace=openfaas-fn", nil), 200, `"name":"crud"`)
	c.want(t, c.cli.describe("crud", "openfaas-fn"), 200, `"envProcess":"env"`)
	c.want(t, c.cli.describe("none", ""), 404, "")
	eventually(t, "the update serves", func() error { return want(c.cli.invoke("GET", "crud", ""), 200, "Http_Method=GET") })
	c.want(t, c.cli.remove("crud", "openfaas-fn"), 202, "")
	c.want(t, c.cli.describe("crud", ""), 404, "")
	c.want(t, c.cli.invoke("GET", "crud", ""), 404, "")
	c.want(t, c.cli.remove("crud", ""), 404, "")
	c.want(t, c.cli.send("DELETE", "/system/functions", message{"functionName": "crud", "namespace": "openfaas-fn"}), 404, "")
}

func testVerbatim(t *testing.T, c *cluster) {
	story := `{    "glossary": {        "title": "example glossary"    }}`
	c.function(t, "verbatim", "cat", message{"envVars": message{"a": "b c"}, "labels": message{"canary_build": "true"},
		"annotations": message{"some-json": story}, "limits": message{"memory": "128Mi", "cpu": "0.25"}, "requests": message{"memory": "32Mi"}, "readOnlyRootFilesystem": true})
	s, err := c.cli.status("verbatim")
	if err != nil {
		t.Fatal(err)
	}
	for what, is := range map[string]bool{
		"image": s.Image == testImage, "namespace": s.Namespace == "openfaas-fn", "envProcess": s.EnvProcess == "cat",
		"envVars": reflect.DeepEqual(s.EnvVars, map[string]string{"a": "b c"}), "labels": reflect.DeepEqual(s.Labels, map[string]string{"canary_build": "true"}),
		"annotations": reflect.DeepEqual(s.Annotations, map[string]string{"some-json": story}),
		"limits":      reflect.DeepEqual(s.Limits, map[string]string{"memory": "128Mi", "cpu": "0.25"}), "requests": reflect.DeepEqual(s.Requests, map[string]string{"memory": "32Mi"}),
		"read-only": s.ReadOnlyRootFilesystem, "createdAt": time.Since(s.CreatedAt) < time.Hour, "mode": s.Mode == "plain",
	} {
		if !is {
			t.Errorf("%s is not what was deployed: %+v", what, s)
		}
	}
	c.function(t, "bare", "", nil)
	var fields map[string]any
	if err := c.cli.describe("bare", "").into(&fields); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"envVars", "limits", "requests"} {
		if v, ok := fields[f]; ok {
			t.Errorf("%s is there, as %v", f, v)
		}
	}
	for _, f := range []string{"labels", "annotations"} {
		if m, ok := fields[f].(map[string]any); !ok || len(m) > 0 {
			t.Errorf("%s is %v", f, fields[f])
		}
	}
}

func testReadiness(t *testing.T, c *cluster) {
	c.function(t, "ready", "cat", nil)
	eventually(t, "a replica is available without a call", func() error {
		s, err := c.cli.status("ready")
		if err == nil && (s.AvailableReplicas < 1 || s.Replicas < 1) {
			err = fmt.Errorf("%d of %d replicas", s.AvailableReplicas, s.Replicas)
		}
		return err
	})
	c.want(t, c.cli.invoke("POST", "ready", "x"), 200, "x")
	if s, err := c.cli.status("ready"); err != nil || s.InvocationCount != 1 {
		t.Errorf("%v invocations, %v", s.InvocationCount, err)
	}
}

func testUsage(t *testing.T, c *cluster) {
	c.function(t, "usage", "cat", nil)
	c.want(t, c.cli.invoke("POST", "usage", "x"), 200, "x")
	eventually(t, "memory is in use", func() error {
		s, err := c.cli.status("usage")
		if err == nil && (s.Usage == nil || s.Usage.TotalMemoryBytes <= 0) {
			err = fmt.Errorf("usage is %+v", s.Usage)
		}
		return err
	})
}

func testScale(t *testing.T, c *cluster) {
	c.function(t, "scaled", "cat", message{"labels": message{"com.openfaas.scale.min": "2"}})
	replicas := func(n int) func() error {
		return func() error {
			s, err := c.cli.status("scaled")
			if err == nil && (s.Replicas != n || s.AvailableReplicas != n) {
				err = fmt.Errorf("%d of %d replicas", s.AvailableReplicas, s.Replicas)
			}
			return err
		}
	}
	eventually(t, "the minimum is there", replicas(2))
	c.want(t, c.cli.scale("scaled", "", 3), 202, "")
	eventually(t, "three are there", replicas(3))
	c.want(t, c.cli.send("POST", "/system/scale-function/scaled?namespace=openfaas-fn", message{"service": "scaled", "replicas": 0}), 202, "")
	eventually(t, "none is there", replicas(0))
	c.want(t, c.cli.invoke("POST", "scaled", "from zero"), 200, "from zero")
	c.want(t, c.cli.scale("none", "", 1), 404, "")
	c.want(t, c.cli.send("POST", "/system/scale-function/scaled", "{"), 400, "")
}

func testSecrets(t *testing.T, c *cluster) {
	c.want(t, c.cli.secrets("openfaas-fn"), 200, "[]")
	c.want(t, c.cli.secret("POST", "key", "", "first"), 201, "")
	c.want(t, c.cli.secret("POST", "key", "openfaas-fn", "first"), 409, "")
	c.want(t, c.cli.secrets(""), 200, `[{"name":"key","namespace":"openfaas-fn"}]`)
	c.function(t, "secretive", "cat /var/openfaas/secrets/key", message{"secrets": []string{"key"}})
	c.want(t, c.cli.invoke("GET", "secretive", ""), 200, "first")
	if r := c.cli.secret("PUT", "key", "", "second"); r.status != 200 && r.status != 202 {
		t.Errorf("update: %d %s", r.status, r.body)
	}
	raw := base64.StdEncoding.EncodeToString([]byte{0, 1, 255})
	c.want(t, c.cli.send("POST", "/system/secrets", message{"name": "raw", "rawValue": raw}), 201, "")
	c.function(t, "binary", "cat /var/openfaas/secrets/raw", message{"secrets": []string{"raw"}})
	if r := c.cli.invoke("GET", "binary", ""); r.body != "\x00\x01\xff" {
		t.Errorf("%q", r.body)
	}
	c.want(t, c.cli.secret("PUT", "none", "", "x"), 404, "")
	c.want(t, c.cli.secret("DELETE", "none", "", ""), 404, "")
	for _, s := range []string{"key", "raw"} {
		if r := c.cli.secret("DELETE", s, "openfaas-fn", ""); r.status != 200 && r.status != 202 {
			t.Errorf("delete %s: %d %s", s, r.status, r.body)
		}
	}
	c.want(t, c.cli.secrets(""), 200, "[]")
}

func testNamespaces(t *testing.T, c *cluster) {
	c.want(t, c.cli.send("GET", "/system/namespaces", nil), 200, `["openfaas-fn"]`)
	dev := message{"name": "dev", "labels": message{"openfaas": "1"}, "annotations": message{"a": "b"}}
	c.want(t, c.cli.send("POST", "/system/namespace/", dev), 201, "")
	c.want(t, c.cli.send("POST", "/system/namespace/", dev), 409, "")
	c.want(t, c.cli.send("POST", "/system/namespace/", message{"name": "Dev"}), 400, "")
	c.want(t, c.cli.send("GET", "/system/namespaces", nil), 200, `["dev","openfaas-fn"]`)
	c.want(t, c.cli.send("GET", "/system/namespace/dev", nil), 200, `{"name":"dev","labels":{"openfaas":"1"},"annotations":{"a":"b"}}`)
	c.want(t, c.cli.send("PUT", "/system/namespace/dev", message{"name": "dev", "labels": message{"openfaas": "1", "c": "d"}}), 202, "")
	c.want(t, c.cli.send("GET", "/system/namespace/dev", nil), 200, `"c":"d"`)
	c.want(t, c.cli.send("GET", "/system/namespace/none", nil), 404, "")
	c.want(t, c.cli.send("PUT", "/system/namespace/none", message{"name": "none"}), 404, "")
	c.want(t, c.cli.send("DELETE", "/system/namespace/none", message{"name": "none"}), 404, "")
	c.want(t, c.cli.deploy(message{"service": "there", "image": testImage, "envProcess": "cat", "namespace": "dev"}), 202, "")
	c.want(t, c.cli.list("dev"), 200, `"name":"there"`)
	if r := c.cli.list(""); strings.Contains(r.body, `"there"`) {
		t.Error("it is listed in another namespace too")
	}
	c.want(t, c.cli.invoke("POST", "there.dev", "x"), 200, "x")
	c.want(t, c.cli.invoke("POST", "there", "x"), 404, "")
	c.want(t, c.cli.send("DELETE", "/system/namespace/dev", message{"name": "dev"}), 409, "")
	c.want(t, c.cli.remove("there", "dev"), 202, "")
	c.want(t, c.cli.send("DELETE", "/system/namespace/dev", message{"name": "dev"}), 202, "")
	c.want(t, c.cli.send("GET", "/system/namespaces", nil), 200, `["openfaas-fn"]`)
	c.want(t, c.cli.send("DELETE", "/system/namespace/openfaas-fn", message{"name": "openfaas-fn"}), 403, "")
}

func testInfo(t *testing.T, c *cluster) {
	type version struct{ Release, SHA string }
	var info struct {
		Provider struct {
			Provider, Orchestration string
			Version                 version
		}
		Version version
		Arch    string
	}
	if err := c.cli.send("GET", "/system/info", nil).into(&info); err != nil {
		t.Fatal(err)
	}
	all := []string{info.Provider.Provider, info.Provider.Orchestration, info.Provider.Version.Release, info.Provider.Version.SHA, info.Version.Release, info.Version.SHA, info.Arch}
	if slices.Contains(all, "") {
		t.Errorf("%+v", info)
	}
}

func testHealthz(t *testing.T, c *cluster) {
	for _, method := range []string{"GET", "HEAD"} {
		c.want(t, c.cli.send(method, "/healthz", nil), 200, "")
	}
}

func testLogs(t *testing.T, c *cluster) {
	c.function(t, "logger", "sha512sum", nil)
	c.want(t, c.cli.invoke("GET", "logger", ""), 200, "")
	eventually(t, "two lines of an invocation", func() error {
		lines, err := c.cli.logs("logger", 2)
		if err != nil {
			return err
		}
		if len(lines) != 2 || !strings.Contains(lines[0].Text, "Forking fprocess") || !strings.Contains(lines[1].Text, "Wrote 132 Bytes") {
			return fmt.Errorf("%+v", lines)
		}
		for _, l := range lines {
			if l.Name != "logger" || l.Namespace != "openfaas-fn" || l.Instance == "" || time.Since(l.Timestamp) > time.Minute {
				return fmt.Errorf("%+v", l)
			}
		}
		return nil
	})
	testLogQueries(t, c)
	for _, bad := range []string{"since=yesterday", "tail=some", "follow=perhaps"} {
		c.want(t, c.cli.send("GET", "/system/logs?name=logger&"+bad, nil), 422, strings.SplitN(bad, "=", 2)[0])
	}
	c.want(t, c.cli.send("GET", "/system/logs", nil), 422, "")
	c.want(t, c.cli.send("GET", "/system/logs?name=none", nil), 404, "")
	testFollow(t, c)
}

// testLogQueries asks for parts of a log that has two lines of one call.
func testLogQueries(t *testing.T, c *cluster) {
	all, err := c.cli.logs("logger", 0)
	if err != nil || len(all) < 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	for what, q := range map[string]struct {
		key, value string
		lines      int
	}{
		"all":             {"tail", "-1", len(all)},
		"the last one":    {"tail", "1", 1},
		"of the instance": {"instance", all[0].Instance, len(all)},
		"of another":      {"instance", "none", 0},
		"of today":        {"since", time.Now().Add(-time.Hour).Format(time.RFC3339), len(all)},
		"after the first": {"since", all[len(all)-1].Timestamp.Format(time.RFC3339Nano), 1},
		"of the future":   {"since", time.Now().Add(time.Hour).Format(time.RFC3339), 0},
	} {
		v := url.Values{"name": {"logger"}, "namespace": {"openfaas-fn"}, "follow": {"false"}, q.key: {q.value}}
		r := c.cli.send("GET", "/system/logs?"+v.Encode(), nil)
		if n := strings.Count(r.body, `"text":`); r.status != 200 || n != q.lines {
			t.Errorf("lines %s: status %d and %d lines, want %d: %s", what, r.status, n, q.lines, r.body)
		}
		if q.lines == 1 && !strings.Contains(r.body, "Wrote") {
			t.Errorf("lines %s: it is not the last one: %s", what, r.body)
		}
	}
}

// testFollow wants a line as it comes, and no sooner than it is written.
func testFollow(t *testing.T, c *cluster) {
	req, err := http.NewRequestWithContext(t.Context(), "GET", c.cli.gateway+"/system/logs?name=logger&follow=true&tail=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(c.cli.user, c.cli.password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	var m logMessage
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	c.want(t, c.cli.invoke("GET", "logger", ""), 200, "")
	seen := make(chan error, 1)
	go func() { seen <- d.Decode(&m) }()
	select {
	case err := <-seen:
		if err != nil || !strings.Contains(m.Text, "Forking fprocess") {
			t.Errorf("%+v, %v", m, err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the line of an invocation does not come")
	}
}
