package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// TestOperatorSeesNoTickAndNoDividedCall hunts for what is sealed ahead, while it lies
// in the store and while it is called, and for calls that a traffic statement divides
// between two revisions: in the memory of every daemon, in every file, and in all
// traffic.
func TestOperatorSeesNoTickAndNoDividedCall(t *testing.T) {
	needTools(t, "tcpdump")
	began := time.Now()
	c := up(t, 2)
	can := newCanaries(t)
	h := &hunt{t: t, c: c, can: can, began: began, dial: (&net.Dialer{}).DialContext}
	h.marks()
	capture := startCapture(t, "", "lo", h.ports())
	fn := h.deploy(queued)
	h.search(fn)

	// Two that begin later: they are in the store all the time, and nobody opens them.
	c.must(t, fn, "/", "x")
	a := h.ahead(fn, "@every 1s", 2*time.Minute)
	h.ahead(fn, "@hourly", 48*time.Hour)
	h.searchFiles("sealed")
	h.made(a, 3)
	h.inside(h.searchProcesses("ticks"), map[string][]string{"function": {"tick's header", "tick's path"}})
	h.searchFiles("ticks")
	if err := c.client.RemoveSchedule(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}

	// A second revision, and calls to both by the owner's statement.
	first := c.status(t, fn).Revision
	h.redeploy(queued, func(d *client.Deployment) { d.Exec = 19 * time.Second })
	within(t, 30*time.Second, "the new revision alone serves", func() bool {
		st := c.status(t, fn)
		return st.Revision != first && len(st.Serving) == 0
	})
	second := c.status(t, fn).Revision
	if _, err := c.client.Divide(t.Context(), fn, map[string]int{first: 50, second: 50}, time.Hour, c.keyring); err != nil {
		t.Fatal(err)
	}
	stop := h.divided(fn, first, second)
	h.inside(h.searchProcesses("divided"), map[string][]string{"function": {"divided header", "divided path"}})
	h.searchFiles("divided")
	stop()

	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 30*time.Second, "the function to be stopped", h.idle)
	h.searchProcesses("removed")
	h.searchFiles("removed")
	h.searchTraffic(capture)
	h.plantedProcess()
	h.report()
}

// ahead seals ticks that carry canaries, and sends them.
func (h *hunt) ahead(fn api.FunctionName, cron string, span time.Duration) *client.Ahead {
	h.t.Helper()
	req := client.Request{Path: "/" + h.can.tickPath, Header: http.Header{"X-Test": {h.can.tickHeader}}}
	a, err := h.c.client.NewAhead(fn, cron, req, []byte(strings.Repeat(h.can.tick, 64)), client.Later{})
	if err != nil {
		h.t.Fatal(err)
	}
	sendTicks(h.t, h.c.client, a, time.Now(), span, api.TicksNew)
	return a
}

// made waits until some ticks were made and their results are what was sealed, so that
// there was something to find.
func (h *hunt) made(a *client.Ahead, n int) {
	h.t.Helper()
	want, done := strings.Repeat(h.can.tick, 64), map[time.Time]bool{}
	within(h.t, time.Minute, fmt.Sprintf("%d ticks have results", n), func() bool {
		for _, tick := range a.Sealed(time.Time{}, time.Now()) {
			if done[tick] {
				continue
			}
			resp, err := h.c.client.TickResult(h.t.Context(), a, tick)
			if errors.Is(err, client.ErrNotYet) || api.CodeOf(err) == api.CodeNotFound {
				continue
			}
			if err != nil {
				h.t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(b) != want || resp.Header.Get("X-Echo-Header") != h.can.tickHeader || resp.Header.Get("X-Echo-Path") != "/"+h.can.tickPath {
				h.t.Fatalf("tick %s: %d %.80q %v", tick, resp.Status, b, err)
			}
			done[tick] = true
		}
		return len(done) >= n
	})
}

// divided calls with canaries until stop, which checks that both revisions answered.
func (h *hunt) divided(fn api.FunctionName, revisions ...string) (stop func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]int{}
	body := strings.Repeat(h.can.divided, 64)
	both := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, err := h.c.client.Invoke(ctx, fn, client.Request{Path: "/" + h.can.dividedPath, Header: http.Header{"X-Test": {h.can.dividedHeader}},
					Body: strings.NewReader(body)})
				var b []byte
				if err == nil {
					b, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if ctx.Err() != nil {
					return
				}
				if err != nil || string(b) != body {
					h.t.Errorf("a divided call: %.80q %v", b, err)
					return
				}
				mu.Lock()
				if r := resp.Meta.Revision.String(); seen[r] == 0 {
					if seen[r]++; len(seen) == len(revisions) {
						close(both)
					}
				} else {
					seen[r]++
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-both:
	case <-time.After(time.Minute):
		cancel()
		wg.Wait()
		h.t.Fatalf("not both revisions answer: %v", seen)
	}
	return func() {
		cancel()
		wg.Wait()
		for _, r := range revisions {
			if seen[r] == 0 {
				h.t.Errorf("revision %.12s never answered: %v", r, seen)
			}
		}
		h.t.Logf("divided calls: %v", seen)
	}
}

// keysOf is where the owner keeps a function's keys.
func (h *hunt) keysOf(fn api.FunctionName) string {
	return filepath.Join(h.keys, fn.Namespace(), fn.Function())
}
