package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestCallsThatWaitAtAnyCoordinatorHaveReplicasMade fills a cluster of three
// coordinators, and has calls wait for room in one that does not control replicas:
// they are counted until it dies, and get their replicas once there is room.
func TestCallsThatWaitAtAnyCoordinatorHaveReplicasMade(t *testing.T) {
	c := up(t, 2, func(cfg *local.Config) { cfg.Coordinators, cfg.CPU = 3, "1" })
	filling := api.Pinned(2)
	filler := c.deploy(t, "filler", tiny(&filling), func(d *client.Deployment) { d.Resources.CPU = 700 })
	c.available(t, filler, 2)
	p := api.DefaultScale()
	p.Target, p.Proportion, p.Min, p.Max, p.Zero = 1, 1, 1, 6, false
	p.DownWindow = (3 * time.Second).Milliseconds()
	fn := c.deploy(t, "awaited", tiny(&p), func(d *client.Deployment) { d.Resources.CPU, d.MaxInFlight = 200, 1 })
	c.available(t, fn, 1)
	w := &waitsWorld{c: c, entries: c.through(t, c.Gateways())}
	for i, e := range w.entries {
		waitFor(t, 20*time.Second, fmt.Sprintf("coordinator %d to serve", i+1), func() error { return e.call(t.Context(), fn) })
	}

	// A sealed function's callers, at a coordinator that dies with them.
	at := w.notControlling(t)
	stop := w.callers(t, 6, func(ctx context.Context) error {
		resp, err := w.entries[at].client.Invoke(ctx, fn, client.Request{Path: "/sleep", Query: "ms=1000", Body: strings.NewReader("x")})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	})
	w.wants(t, fn, 6, 2)
	w.waitOnlyAt(t, at, fn)
	w.toldEverywhere(t, fn, 6)
	died := time.Now()
	if err := c.Signal(coordinatorPart(at), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stop()
	w.wants(t, fn, 1, 1)
	t.Logf("one replica again %v after %s was killed", time.Since(died), coordinatorPart(at))
	waitFor(t, 40*time.Second, "all coordinators to be back", func() error { return allReady(t.Context(), c.Gateways()) })
	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}

	// A plain one's.
	c.pushTestImage(t, "plain/awaited")
	plain := api.Plain{Image: "plain/awaited", Env: map[string]string{"max_inflight": "1"}, Limits: &api.PlainAmounts{CPU: "200m", Memory: "32Mi"},
		Labels: map[string]string{api.ScaleLabel + "min": "1", api.ScaleLabel + "max": "6", api.ScaleLabel + "type": api.ScaleCapacity,
			api.ScaleLabel + "target": "1", api.ScaleLabel + "target-proportion": "1", api.ScaleLabel + "down.window": "3s"}}
	if status, b := c.putPlain(t, "plainly", plain); status != http.StatusOK {
		t.Fatalf("%d %s", status, b)
	}
	const name api.FunctionName = "plainly.openfaas-fn"
	w.wants(t, name, 1, 1)
	at = w.notControlling(t)
	var served atomic.Int64
	url := c.Gateways()[at] + "/function/plainly/sleep?ms=300"
	stop = w.callers(t, 6, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("x"))
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%d %s %w", resp.StatusCode, b, err)
		}
		served.Add(1)
		return nil
	})
	w.wants(t, name, 6, 2)
	w.waitOnlyAt(t, at, name)
	w.toldEverywhere(t, name, 6)
	if err := c.client.Remove(t.Context(), filler); err != nil {
		t.Fatal(err)
	}
	w.wants(t, name, 6, 6)
	within(t, 10*time.Second, "calls that waited are served", func() bool { return served.Load() > 0 })
	if err := stop(); err != nil {
		t.Errorf("a call that waited: %v", err)
	}
	w.wants(t, name, 1, 1)
}

// waitsWorld is a cluster with a way in through each coordinator.
type waitsWorld struct {
	c       *cluster
	entries []*entry
}

// controlling is the coordinator that controls replicas now.
func (w *waitsWorld) controlling(t *testing.T) int {
	t.Helper()
	name, _ := w.c.controller(t)
	for i := range w.entries {
		if coordinatorPart(i) == name {
			return i
		}
	}
	t.Fatalf("%s controls replicas and is none of the coordinators", name)
	return 0
}

// notControlling is one of the others.
func (w *waitsWorld) notControlling(t *testing.T) int {
	t.Helper()
	return (w.controlling(t) + 1) % len(w.entries)
}

// wants waits until the one that controls wants so many replicas of fn, and so many
// are there: OpenFaaS's API tells both.
func (w *waitsWorld) wants(t *testing.T, fn api.FunctionName, want, there int) {
	t.Helper()
	var st struct{ Replicas, AvailableReplicas int }
	within(t, 30*time.Second, fmt.Sprintf("%d replicas of %s are wanted, and %d there", want, fn, there), func() bool {
		i := w.controlling(t)
		e := &cluster{Cluster: w.c.Cluster, gateway: w.entries[i].gateway}
		status, b := e.system(t, http.MethodGet, "/system/function/"+string(fn), "")
		if err := json.Unmarshal([]byte(b), &st); status != http.StatusOK || err != nil {
			t.Fatalf("%s: %d %s, %v", coordinatorPart(i), status, b, err)
		}
		return st.Replicas == want && st.AvailableReplicas == there
	}, func() string { return fmt.Sprintf("%+v", st) })
}

// waitOnlyAt checks that calls of fn wait in that coordinator, and in no other.
func (w *waitsWorld) waitOnlyAt(t *testing.T, at int, fn api.FunctionName) {
	t.Helper()
	for i, e := range w.entries {
		list, err := e.client.Waiting(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, task := range list {
			if task.Function == fn {
				n++
			}
		}
		if (n > 0) != (i == at) {
			t.Errorf("%d calls of %s wait in %s, all are to in %s", n, fn, coordinatorPart(i), coordinatorPart(at))
		}
	}
}

// toldEverywhere checks that each coordinator tells how many replicas of fn are wanted,
// and that calls of it wait.
func (w *waitsWorld) toldEverywhere(t *testing.T, fn api.FunctionName, want int) {
	t.Helper()
	for i, e := range w.entries {
		var d *api.Demand
		within(t, 10*time.Second, fmt.Sprintf("%s tells what is wanted and what waits", coordinatorPart(i)), func() bool {
			st, err := e.client.Describe(t.Context(), fn)
			if err != nil {
				t.Fatal(err)
			}
			d = st.Demand
			return d != nil && d.Wanted != nil && *d.Wanted == want && d.Waiting != nil && *d.Waiting > 0 && d.Unknown == ""
		}, func() string { return fmt.Sprintf("%+v", d) })
	}
}

// callers calls from n callers at once, until stop ends those under way too; stop
// returns how one failed before.
func (w *waitsWorld) callers(t *testing.T, n int, call func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := call(ctx); err != nil && ctx.Err() == nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	t.Cleanup(cancel)
	return func() error {
		cancel()
		wg.Wait()
		if err := failed.Load(); err != nil {
			return *err
		}
		return nil
	}
}
