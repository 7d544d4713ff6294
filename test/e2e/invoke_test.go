package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/client"
)

func TestSealedFunctionAnswersItsCaller(t *testing.T) {
	c := up(t, 1)
	t.Run("on a handed socket", func(t *testing.T) { answers(t, c, "echo") })
	// As images made for of-watchdog and classic-watchdog do.
	t.Run("on port 8080", func(t *testing.T) {
		answers(t, c, "echo-tcp", func(d *client.Deployment) { d.Upstream = "http://127.0.0.1:8080" })
	})
}

// answers deploys the test function and calls it cold and warm.
func answers(t *testing.T, c *cluster, name string, change ...func(*client.Deployment)) {
	fn := c.deploy(t, name, change...)
	for i, want := range []string{"cold", "warm", "warm"} {
		resp, body, err := c.invoke(t, fn, client.Request{
			Method: http.MethodPut, Path: "/a/b", Query: "x=1", Header: http.Header{"X-Test": {"v"}}, Body: strings.NewReader("hello"),
		})
		if err != nil {
			t.Fatal(err)
		}
		if string(body) != "hello" || resp.Status != 200 || fresh(resp.Meta.Start) != (want == "cold") {
			t.Fatalf("call %d: %d %q, start %s, want %s", i, resp.Status, body, resp.Meta.Start, want)
		}
		for h, want := range map[string]string{"X-Echo-Method": "PUT", "X-Echo-Path": "/a/b", "X-Echo-Query": "x=1", "X-Echo-Header": "v"} {
			if got := resp.Header.Get(h); got != want {
				t.Errorf("%s: %q, want %q", h, got, want)
			}
		}
		t.Logf("%s: %v, %v in the server", want, resp.Meta.Duration, resp.Meta.InServer)
	}
}
