package openfaas

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// callback is a request that a cluster made to who called.
type callback struct {
	*http.Request
	body string
}

// receiver is a server that callbacks are made to.
func receiver(t *testing.T) (url string, got <-chan callback) {
	t.Helper()
	ch := make(chan callback, 16)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body) // what is missing is told by its length
		ch <- callback{r, string(b)}
	}))
	t.Cleanup(s.Close)
	return s.URL + "/done", ch
}

// next waits for a callback.
func next(t *testing.T, got <-chan callback) callback {
	t.Helper()
	select {
	case c := <-got:
		return c
	case <-time.After(30 * time.Second):
		t.Fatal("no callback came")
		return callback{}
	}
}

// async calls a function for later; headers are names and values.
func (c *faasCLI) async(method, name, body string, header ...string) reply {
	return c.send(method, "/async-function/"+name, body, func(r *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
	})
}

func testAsync(t *testing.T, c *cluster) {
	c.function(t, "later", "cat", nil)
	url, got := receiver(t)
	r := c.cli.async("POST", "later", "for later")
	if r.status != 202 || r.body != "" || r.header.Get("X-Call-Id") == "" || r.header.Get("X-Start-Time") == "" {
		t.Errorf("%+v", r)
	}
	c.want(t, c.cli.async("POST", "later", "x", "X-Callback-Url", "no url"), 400, "")
	if r := c.cli.async("POST", "none", "x"); r.status != 404 {
		t.Errorf("an unknown function: %d", r.status)
	}
	r = c.cli.async("POST", "later", "call me back", "X-Callback-Url", url, "X-Call-Id", "call-1")
	if r.status != 202 || r.header.Get("X-Call-Id") != "call-1" {
		t.Fatalf("%+v", r)
	}
	back := next(t, got)
	if back.body != "call me back" || back.Method != "POST" || back.URL.Path != "/done" {
		t.Errorf("%s %s: %q", back.Method, back.URL, back.body)
	}
	for k, want := range map[string]string{"X-Call-Id": "call-1", "X-Function-Status": "200", "X-Function-Name": "later"} {
		if v := back.Header.Get(k); v != want {
			t.Errorf("%s is %q, want %q", k, v, want)
		}
	}
	if _, err := strconv.ParseFloat(back.Header.Get("X-Duration-Seconds"), 64); err != nil {
		t.Error(err)
	}
}

// testAsyncCancelled cancels a call that runs and one that waits for it.
func testAsyncCancelled(t *testing.T, c *cluster) {
	c.function(t, "cancelled", "sleep 3s", message{"envVars": message{"max_inflight": "1"}, "labels": message{"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "1"}})
	call := func() string {
		r := c.cli.async("POST", "cancelled", "x")
		if r.status != 202 {
			t.Fatalf("%+v", r)
		}
		return r.header.Get("X-Call-Id")
	}
	runs := call()
	eventually(t, "it runs", func() error { return c.logged("cancelled", "Forking fprocess") })
	waits := call()
	for what, id := range map[string]string{"one that runs": runs, "one that waits": waits} {
		result := func() reply { return c.cli.send("GET", "/v1/results/"+id, nil) }
		if err := want(result(), 202, ""); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := want(c.cli.async("DELETE", id, ""), 202, ""); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := want(result(), 409, `"cancelled"`); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := want(c.cli.async("DELETE", id, ""), 409, ""); err != nil {
			t.Errorf("%s, again: %v", what, err)
		}
	}
	c.want(t, c.cli.async("DELETE", "no-such-call", ""), 404, "")
	// Whatever it still does is not stored as its result.
	c.want(t, c.cli.async("POST", "cancelled", "after"), 202, "")
	eventually(t, "it was called again", func() error { return c.forked("cancelled", "2") })
	c.want(t, c.cli.send("GET", "/v1/results/"+runs, nil), 409, `"cancelled"`)
}

// testAsyncRetries counts attempts by what comes back.
func testAsyncRetries(t *testing.T, c *cluster) {
	url, got := receiver(t)
	for _, is := range []struct {
		name, process    string
		more             message
		status, attempts string
		body             string
	}{
		{"flaky", "flaky 2", message{"attempts": "5"}, "200", "3", "3\n"},
		{"given-up", "false", message{"attempts": "2"}, "502", "2", "function_failed"},
		{"not-repeated", "false", message{"attempts": "5", "codes": "503,504"}, "500", "1", "exit status 1"},
	} {
		annotations := message{}
		for k, v := range is.more {
			annotations["com.openfaas.retry."+k] = v
		}
		annotations["com.openfaas.retry.min_wait"], annotations["com.openfaas.retry.max_wait"] = "100ms", "200ms"
		c.function(t, is.name, is.process, message{"annotations": annotations, "labels": message{"com.openfaas.scale.max": "1"}})
		if r := c.cli.async("POST", is.name, "x", "X-Callback-Url", url); r.status != 202 {
			t.Fatalf("%+v", r)
		}
		back := next(t, got)
		h := back.Header
		if h.Get("X-Function-Name") != is.name || h.Get("X-Function-Status") != is.status || h.Get("X-Faasd-Sec-Attempts") != is.attempts || !strings.Contains(back.body, is.body) {
			t.Errorf("%s: %q %v, want status %s of %s attempts with %q", is.name, back.body, h, is.status, is.attempts, is.body)
		}
		eventually(t, "it was called as often as the callback says", func() error { return c.forked(is.name, is.attempts) })
	}
	bad := message{"service": "bad", "image": testImage, "annotations": message{"com.openfaas.retry.attempts": "some"}}
	if r := c.cli.deploy(bad); r.status == 202 { // it may be told with the call alone
		t.Cleanup(func() { c.cli.remove("bad", "") })
		c.want(t, c.cli.async("POST", "bad", "x"), 400, "com.openfaas.retry.attempts")
	}
}

// forked complains unless a function was called so often.
func (c *cluster) forked(fn, times string) error {
	lines, err := c.cli.logs(fn, 0)
	if err != nil {
		return err
	}
	n := 0
	for _, l := range lines {
		if strings.Contains(l.Text, "Forking fprocess") {
			n++
		}
	}
	if strconv.Itoa(n) != times {
		return fmt.Errorf("%s was called %d times, want %s", fn, n, times)
	}
	return nil
}
