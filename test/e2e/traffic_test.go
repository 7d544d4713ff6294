package e2e

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// TestTraffic divides the calls of a plain function between two revisions.
func TestTraffic(t *testing.T) {
	c := up(t, 1)
	c.pushTestImage(t, "plain/which")
	deploy := func(color string) string {
		t.Helper()
		if status, b := c.putPlain(t, "which", api.Plain{Image: "plain/which", Env: map[string]string{"COLOR": color}}); status != http.StatusOK {
			t.Fatalf("%d %s", status, b)
		}
		var st api.FunctionStatus
		within(t, 30*time.Second, "it serves", func() bool {
			st = c.status(t, "which.openfaas-fn")
			return st.Plain.Env["COLOR"] == color
		})
		return st.Revision
	}
	blue := deploy("blue")
	if got := c.call(t, "which/env?name=COLOR", ""); !strings.Contains(got, "blue") {
		t.Fatalf("%q", got)
	}
	green := deploy("green")
	if err := c.client.SetTraffic(t.Context(), "which.openfaas-fn", map[string]int{blue: 10, green: 90}); err != nil {
		t.Fatal(err)
	}
	const calls = 3000
	var mu sync.Mutex
	seen, ids := map[string]int{}, make(chan int, calls)
	for i := range calls {
		ids <- i
	}
	close(ids)
	ask := func(id string) string {
		resp := c.ask(t, &http.Client{}, "GET", "/function/which/env?name=COLOR", nil, api.HeaderCallID, id)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s %v", id, resp.StatusCode, b, err)
		}
		if strings.Contains(string(b), "blue") {
			return "blue"
		}
		return "green"
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range ids {
				color := ask(fmt.Sprintf("call-%d", i))
				mu.Lock()
				seen[color]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if off := math.Abs(float64(seen["blue"])*100/calls - 10); off > 2 {
		t.Errorf("%v of %d calls, want 10 %% blue", seen, calls)
	}
	t.Logf("%v", seen)
	first := ask("always-the-same")
	for range 20 {
		if got := ask("always-the-same"); got != first {
			t.Fatalf("one id came to %s and to %s", first, got)
		}
	}
	laterGoesWhereNow(t, c, ask)
	if err := c.client.SetTraffic(t.Context(), "which.openfaas-fn", map[string]int{green: 100}); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if got := ask(fmt.Sprintf("after-%d", i)); got != "green" {
			t.Fatalf("%s after blue has no share", got)
		}
	}
}

// laterGoesWhereNow has calls made later, and each come to the revision that a call of its
// id comes to at once.
func laterGoesWhereNow(t *testing.T, c *cluster, ask func(id string) string) {
	t.Helper()
	blue := 0
	for i := range 60 {
		id := fmt.Sprintf("call-%d", i)
		resp := c.ask(t, &http.Client{}, "POST", "/async-function/which/env?name=COLOR", nil, api.HeaderCallID, id)
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%s: %s", id, resp.Status)
		}
	}
	for i := range 60 {
		id := fmt.Sprintf("call-%d", i)
		var got string
		within(t, 20*time.Second, id+" has ended", func() bool {
			resp := c.ask(t, &http.Client{}, "GET", api.GatewayPathResults+id, nil)
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			got = string(b)
			return err == nil && resp.StatusCode == http.StatusOK
		}, func() string { return got })
		want := ask(id)
		if !strings.Contains(got, want) {
			t.Errorf("%s came to %q, at once it comes to %s", id, got, want)
		}
		if want == "blue" {
			blue++
		}
	}
	if blue == 0 || blue == 60 {
		t.Errorf("%d of 60 came to blue: nothing was divided", blue)
	}
}
