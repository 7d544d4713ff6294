package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

func TestPlainFunctionsAreCalledLaterAndByTheClock(t *testing.T) {
	c := up(t, 1)
	c.pushTestImage(t, "plain/echo")
	if status, b := c.putPlain(t, "echo", api.Plain{Image: "plain/echo", Annotations: map[string]string{"topic": "cron-function", "schedule": "@every 1s"}}); status != http.StatusOK {
		t.Fatalf("%d %s", status, b)
	}
	resp := c.ask(t, &http.Client{}, "POST", "/async-function/echo/a%20b?x=1", strings.NewReader("body"), "X-Test", "yes")
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusAccepted || len(b) != 0 {
		t.Fatalf("%d %q %v", resp.StatusCode, b, err)
	}
	id := resp.Header.Get(api.HeaderCallID)
	within(t, 30*time.Second, "it has a result", func() bool {
		r := c.ask(t, &http.Client{}, "GET", api.GatewayPathResults+id, nil)
		defer r.Body.Close()
		if r.StatusCode == http.StatusAccepted {
			return false
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK || string(b) != "body" || r.Header.Get("X-Echo-Path") != "/a b" || r.Header.Get("X-Echo-Query") != "x=1" || r.Header.Get("X-Echo-Header") != "yes" {
			t.Fatalf("%d %q %v %v", r.StatusCode, b, r.Header, err)
		}
		return true
	})
	within(t, 30*time.Second, "the clock has called it", func() bool {
		r, err := quick.Get("http://" + c.part(t, "coordinator").flag("ops-listen") + "/metrics")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(b)) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "faasd_sec_async_done_total "); ok {
				done, err := strconv.ParseFloat(n, 64)
				return err == nil && done >= 3
			}
		}
		return false
	})
}

// TestAcceptedCallsOutliveTheirCoordinator kills the coordinator that accepted
// calls, large ones among them: the others finish what it had.
func TestAcceptedCallsOutliveTheirCoordinator(t *testing.T) {
	c := up(t, 1, func(cfg *local.Config) { cfg.Coordinators = 3 })
	entries := c.through(t, c.Gateways())
	fn := c.deploy(t, "echo", queued)
	for _, e := range entries {
		waitFor(t, 10*time.Second, "it serves", func() error { return e.call(t.Context(), fn) })
	}
	var ps []*client.Pending
	for i := range 40 {
		body := strconv.Itoa(i)
		if i%8 == 0 {
			body = strings.Repeat(body+" ", 100<<10)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		p, err := entries[0].client.InvokeLater(ctx, fn, client.Request{Body: strings.NewReader(body)}, client.Later{})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	if err := c.Signal("coordinator", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i, p := range ps {
		within(t, time.Minute, "call "+p.CallID+" has ended", func() bool {
			resp, err := entries[1].client.Result(t.Context(), p)
			if errors.Is(err, client.ErrNotYet) || api.CodeOf(err) == api.CodeUnavailable {
				return false
			}
			if api.CodeOf(err) == api.CodeReplay { // it ran, and its result went with the coordinator
				return true
			}
			if err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil || !strings.HasPrefix(string(b), strconv.Itoa(i)) || i%8 == 0 && len(b) < 100<<10 {
				t.Errorf("call %d: %d bytes, %v", i, len(b), err)
			}
			return true
		})
	}
}
