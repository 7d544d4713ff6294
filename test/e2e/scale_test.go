package e2e

import (
	"fmt"
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

// TestScale has functions with a policy follow steps of load on a real cluster.
func TestScale(t *testing.T) {
	c := up(t, 2, func(cfg *local.Config) { cfg.NodeArgs = []string{"-pool-min", "2", "-pool-max", "4"} })
	t.Run("from zero to what is needed and back", func(t *testing.T) { scaleByLoad(t, c) })
	t.Run("pinned, and what crashed is replaced", func(t *testing.T) { scalePinned(t, c) })
	t.Run("by hand", func(t *testing.T) { scaleByHand(t, c) })
	t.Run("by requests a second, from zero and back", func(t *testing.T) { scaleByRate(t, c) })
	t.Run("by processor", func(t *testing.T) { scaleByCPU(t, c) })
	t.Run("in steps, within a band", func(t *testing.T) { scaleByBand(t, c) })
}

// tiny makes a function of which many fit, with a policy.
func tiny(p *api.Scale) func(*client.Deployment) {
	return func(d *client.Deployment) {
		d.Resources = api.Resources{CPU: 50, Memory: 32 << 20, PIDs: 64, Tmp: 4 << 20}
		d.Scale = p
	}
}

// status is a function as the gateway tells it.
func (c *cluster) status(t testing.TB, fn api.FunctionName) api.FunctionStatus {
	t.Helper()
	st, err := c.client.Describe(t.Context(), fn)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (c *cluster) available(t testing.TB, fn api.FunctionName, n int) {
	t.Helper()
	var st api.FunctionStatus
	within(t, 30*time.Second, fmt.Sprintf("%s has %d replicas", fn, n), func() bool {
		st = c.status(t, fn)
		return st.Replicas == n && st.Available == n
	}, func() string {
		return fmt.Sprintf("%d replicas, %d ready: %+v", st.Replicas, st.Available, st.Sandboxes)
	})
}

// load calls a function from n callers at once until stop is called, which returns
// how many calls there were. Each has to succeed.
func (c *cluster) load(t testing.TB, fn api.FunctionName, n int, path string) (stop func() int64) {
	t.Helper()
	end := make(chan struct{})
	var wg sync.WaitGroup
	var calls atomic.Int64
	p, q, _ := strings.Cut(path, "?")
	for range n {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				resp, body, err := c.invoke(t, fn, client.Request{Path: p, Query: q, Body: strings.NewReader("x")})
				calls.Add(1)
				if err != nil || resp.Status != http.StatusOK {
					t.Errorf("a call under load: %v %s", err, body)
					return
				}
			}
		})
	}
	return func() int64 { close(end); wg.Wait(); return calls.Load() }
}

func scaleByLoad(t *testing.T, c *cluster) {
	p := api.DefaultScale()
	p.Target, p.Proportion, p.Max = 2, 1, 4
	p.ZeroAfter, p.DownWindow = (3 * time.Second).Milliseconds(), (2 * time.Second).Milliseconds()
	fn := c.deploy(t, "stepped", tiny(&p))
	if st := c.status(t, fn); st.Replicas != 0 {
		t.Errorf("before any call: %+v", st)
	}
	began := time.Now()
	c.must(t, fn, "/", "first")
	t.Logf("the first call of a function at zero took %v", time.Since(began))
	c.available(t, fn, 1)
	stop := c.load(t, fn, 6, "/sleep?ms=200")
	c.available(t, fn, 3)
	more := c.load(t, fn, 8, "/sleep?ms=200")
	c.available(t, fn, 4)
	nodes := map[string]int{}
	for _, s := range c.sandboxes(t, fn) {
		if s.State == "ready" {
			nodes[s.Node]++
		}
	}
	if len(nodes) != 2 {
		t.Errorf("not spread: %v", nodes)
	}
	t.Logf("%d and %d calls, none failed", stop(), more())
	c.available(t, fn, 0)
}

func scalePinned(t *testing.T, c *cluster) {
	p := api.Pinned(2)
	fn := c.deploy(t, "pinned", tiny(&p))
	c.available(t, fn, 2)
	stop := c.load(t, fn, 10, "/sleep?ms=50")
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if st := c.status(t, fn); st.Replicas != 2 {
			t.Errorf("%d replicas under load, 2 are to be", st.Replicas)
			break
		}
	}
	stop()
	_, _, _ = c.invoke(t, fn, client.Request{Path: "/crash"})
	within(t, 20*time.Second, "what crashed was replaced", func() bool {
		ready := 0
		for _, s := range c.sandboxes(t, fn) {
			if s.State == "ready" || s.State == "frozen" {
				ready++
			}
		}
		return ready == 2 && len(c.sandboxes(t, fn)) > 2
	})
	// A node's daemon that dies keeps its sandboxes, and goes on keeping them.
	c.kill(t, "node-1", syscall.SIGKILL)
	c.served(t, "node-1")
	c.available(t, fn, 2)
}

func scaleByHand(t *testing.T, c *cluster) {
	fn := c.deploy(t, "manual", tiny(nil))
	for _, n := range []int{3, 1, 0} {
		if err := c.client.SetReplicas(t.Context(), fn, n); err != nil {
			t.Fatal(err)
		}
		c.available(t, fn, n)
	}
	c.must(t, fn, "/", "from zero")
}

// brief is a policy by what is counted, with windows of a test's patience.
func brief(typ string, target, most int) *api.Scale {
	p := api.DefaultScale()
	p.Type, p.Target, p.Proportion, p.Max = typ, target, 1, most
	p.ZeroAfter, p.DownWindow = (2 * time.Second).Milliseconds(), (2 * time.Second).Milliseconds()
	return &p
}

func scaleByRate(t *testing.T, c *cluster) {
	p := brief(api.ScaleRPS, 10, 3)
	p.Zero = true
	fn := c.deploy(t, "rated", tiny(p), func(d *client.Deployment) { d.MaxInFlight = 16 })
	c.available(t, fn, 0)
	stop := c.load(t, fn, 5, "/sleep?ms=90") // near 50 a second, where 10 are one replica's
	c.available(t, fn, 3)
	stop()
	c.available(t, fn, 0)
}

func scaleByCPU(t *testing.T, c *cluster) {
	p := brief(api.ScaleCPU, 20, 2) // of the 50 millicores that it may have
	p.Zero = false
	fn := c.deploy(t, "burning", tiny(p), func(d *client.Deployment) { d.MaxInFlight = 16 })
	c.available(t, fn, 1)
	stop := c.load(t, fn, 2, "/spin?ms=20")
	c.available(t, fn, 2)
	stop()
	c.available(t, fn, 1)
}

func scaleByBand(t *testing.T, c *cluster) {
	p := brief(api.ScaleCapacity, 2, 4)
	p.Zero, p.Min = false, 1
	p.Band = &api.ScaleBand{Low: 0.3, High: 0.9, Add: 2, Remove: 1}
	fn := c.deploy(t, "banded", tiny(p), func(d *client.Deployment) { d.MaxInFlight = 16 })
	c.available(t, fn, 1)
	stop := c.load(t, fn, 4, "/sleep?ms=300") // twice what one is for: two more, at two thirds of their target
	c.available(t, fn, 3)
	stop()
	c.available(t, fn, 1)
}
