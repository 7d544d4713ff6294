package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestThreeCoordinators runs three coordinators on one store and takes them
// away: one, two, and one after another.
func TestThreeCoordinators(t *testing.T) {
	c := up(t, 1, func(cfg *local.Config) { cfg.Coordinators = 3 })
	entries := c.through(t, c.Gateways())
	resending := c.resending(t, c.Gateways())
	fn := c.deploy(t, "shared")
	for i, e := range entries {
		waitFor(t, 10*time.Second, fmt.Sprintf("coordinator %d to serve", i+1), func() error { return e.call(t.Context(), fn) })
	}
	t.Run("one is killed under load, and its content is there", func(t *testing.T) {
		load := startLoad(t, entries[0], entries[1], fn)
		if err := c.Signal("coordinator", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// Deployed a moment ago through the one that is gone; this node has its
		// image, so the others are asked themselves.
		waitFor(t, 20*time.Second, "deploying through another", func() error {
			return entries[1].as(c, func() error { _, err := c.tryDeploy(t, "second"); return err })
		})
		load.stop(t)
	})
	t.Run("one after another restarts under load", func(t *testing.T) {
		waitFor(t, 30*time.Second, "all to be ready", func() error { return allReady(t.Context(), c.Gateways()) })
		load := startLoad(t, resending, resending, fn)
		for _, part := range []string{"coordinator", "coordinator-2", "coordinator-3"} {
			if err := c.Signal(part, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			waitFor(t, 10*time.Second, part+" to go", func() error {
				if allReady(t.Context(), c.Gateways()) == nil {
					return errors.New("it is still there")
				}
				return nil
			})
			waitFor(t, 40*time.Second, part+" to be back", func() error { return allReady(t.Context(), c.Gateways()) })
		}
		load.stop(t)
	})
	t.Run("one that was cut off knows what was deployed meanwhile", func(t *testing.T) {
		if err := c.Signal("coordinator-3", syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		var fourth api.FunctionName
		waitFor(t, 30*time.Second, "deploying with two", func() error {
			var err error
			fourth, err = c.tryDeploy(t, "fourth")
			return err
		})
		if err := c.Signal("coordinator-3", syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		waitFor(t, 20*time.Second, "it to serve that", func() error { return entries[2].call(t.Context(), fourth) })
	})
	t.Run("the last one goes on with what it knows", func(t *testing.T) {
		for _, part := range []string{"coordinator-2", "coordinator-3"} {
			if err := c.Signal(part, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer c.Signal(part, syscall.SIGCONT)
		}
		waitFor(t, 20*time.Second, "readiness to say so", func() error {
			err := ready(t.Context(), c.Gateways()[0])
			if err == nil || !strings.Contains(err.Error(), "majority") {
				return fmt.Errorf("it says %v", err)
			}
			return nil
		})
		if err := entries[0].call(t.Context(), fn); err != nil {
			t.Errorf("a function that is known: %v", err)
		}
		if _, err := c.tryDeploy(t, "third"); api.CodeOf(err) != api.CodeUnavailable {
			t.Errorf("a deployment without a majority: %v", err)
		}
		// It does so also where it has just started.
		if err := c.Signal("coordinator", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, 60*time.Second, "it to serve again", func() error { return entries[0].call(t.Context(), fn) })
		if err := ready(t.Context(), c.Gateways()[0]); err == nil || !strings.Contains(err.Error(), "majority") {
			t.Errorf("it says %v", err)
		}
		code, problem := c.send(t, http.MethodPost, api.GatewayPathAsync+string(fn), api.ContentTypeSealed, c.message(t, fn, "x"))
		if code != http.StatusServiceUnavailable || problem.Code != api.CodeUnavailable {
			t.Errorf("an asynchronous call: %d %+v", code, problem)
		}
	})
	waitFor(t, 40*time.Second, "all to be back", func() error { return allReady(t.Context(), c.Gateways()) })
	waitFor(t, 20*time.Second, "deployments to go on", func() error { _, err := c.tryDeploy(t, "third"); return err })
}

// TestCoordinatorsStartAgain stops a whole cluster and starts it on its state:
// none of the coordinators is a majority alone.
func TestCoordinatorsStartAgain(t *testing.T) {
	need(t)
	cfg := local.Config{Nodes: 1, Coordinators: 3, State: t.TempDir(), Listen: "127.0.0.1:0", Bin: filepath.Dir(bin(t, "node")),
		Log: slog.New(slog.NewTextHandler(&testWriter{t: t}, nil))}
	lc, stop := startLocal(t, cfg)
	c := newOwner(t, lc)
	fn := c.deploy(t, "kept")
	stop()
	c.Cluster, stop = startLocal(t, cfg)
	defer stop()
	for i, e := range c.through(t, c.Cluster.Gateways()) {
		if err := e.call(t.Context(), fn); err != nil {
			t.Errorf("coordinator %d: %v", i+1, err)
		}
	}
}

// entry is one coordinator as a caller sees it.
type entry struct {
	client  *client.Client
	gateway string
}

// through makes a client for each gateway, with the owner's keys and pins.
func (c *cluster) through(t *testing.T, gateways []string) []*entry {
	t.Helper()
	var all []*entry
	for _, g := range gateways {
		all = append(all, c.entry(t, client.Config{Gateway: g}))
	}
	return all
}

// resending is one client of all gateways, which retries by itself.
func (c *cluster) resending(t *testing.T, gateways []string) *entry {
	t.Helper()
	return c.entry(t, client.Config{Gateway: gateways[0], Others: gateways[1:], Resend: true})
}

func (c *cluster) entry(t *testing.T, cfg client.Config) *entry {
	t.Helper()
	dir, g := t.TempDir(), cfg.Gateway
	if err := client.PinBroker(dir, g, c.Broker()); err != nil {
		t.Fatal(err)
	}
	pins, err := client.OpenPins(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := pins.SetOpener(g, c.openerKey(t, c.ManifestKeys())); err != nil {
		t.Fatal(err)
	}
	cfg.Identity, cfg.Pins = c.id, pins
	cl, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return &entry{client: cl, gateway: g}
}

func (e *entry) call(ctx context.Context, fn api.FunctionName) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := e.client.Invoke(ctx, fn, client.Request{Path: "/echo", Body: strings.NewReader("x")})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Status != http.StatusOK {
		return fmt.Errorf("status %d", resp.Status)
	}
	return nil
}

// as has the cluster's owner work through this coordinator meanwhile.
func (e *entry) as(c *cluster, f func() error) error {
	was, gateway := c.client, c.gateway
	defer func() { c.client, c.gateway = was, gateway }()
	c.client, c.gateway = e.client, e.gateway
	return f()
}

// callLoad calls all the time, at one coordinator and, where it fails, once at
// another.
type callLoad struct {
	end    context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	calls  int
	second int
	failed []error
}

func startLoad(t *testing.T, first, second *entry, fn api.FunctionName) *callLoad {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &callLoad{end: cancel}
	for w := range 4 {
		a, b := first, second
		if w%2 == 1 {
			a, b = b, a
		}
		l.wg.Go(func() {
			for ctx.Err() == nil {
				err := a.call(t.Context(), fn)
				retried := err != nil && a != b
				if retried {
					err = b.call(t.Context(), fn)
				}
				l.mu.Lock()
				l.calls++
				if retried {
					l.second++
				}
				if err != nil {
					l.failed = append(l.failed, err)
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

func (l *callLoad) stop(t *testing.T) {
	t.Helper()
	l.end()
	l.wg.Wait()
	t.Logf("%d calls, %d of them answered by a second coordinator", l.calls, l.second)
	if len(l.failed) > 0 || l.calls == 0 {
		t.Errorf("%d of %d calls failed at both: %v", len(l.failed), l.calls, errors.Join(l.failed...))
	}
}

func ready(ctx context.Context, gateway string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, gateway+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b := make([]byte, 1024)
	n, _ := resp.Body.Read(b)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s", resp.StatusCode, b[:n])
	}
	return nil
}

func allReady(ctx context.Context, gateways []string) error {
	var errs error
	for _, g := range gateways {
		if err := ready(ctx, g); err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", g, err))
		}
	}
	return errs
}
