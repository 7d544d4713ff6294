package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestScalingOutlivesItsCoordinator kills, under load, the one of three coordinators
// that controls replicas.
func TestScalingOutlivesItsCoordinator(t *testing.T) {
	c := up(t, 2, func(cfg *local.Config) { cfg.Coordinators = 3 })
	entries := c.through(t, c.Gateways())
	p := api.DefaultScale()
	p.Target, p.Proportion, p.Min, p.Max, p.Zero = 2, 1, 2, 4, false
	p.DownWindow = (3 * time.Second).Milliseconds()
	fn := c.deploy(t, "governed", tiny(&p))
	for i, e := range entries {
		waitFor(t, 10*time.Second, fmt.Sprintf("coordinator %d to serve", i+1), func() error { return e.call(t.Context(), fn) })
	}
	c.available(t, fn, 2)
	was, terms := c.controller(t)
	rest := make([]*entry, 0, 2)
	for i, e := range entries {
		if coordinatorPart(i) != was {
			rest = append(rest, e)
		}
	}
	seen := func() api.FunctionStatus {
		st, err := rest[0].client.Describe(t.Context(), fn)
		if err != nil {
			t.Errorf("describe through one that remains: %v", err)
		}
		return st
	}
	load := startLoad(t, rest[0], rest[1], fn)
	if err := c.Signal(was, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	within(t, 30*time.Second, "another controls", func() bool {
		if st := seen(); st.Replicas < 2 || st.Replicas > 4+2 {
			t.Errorf("%d replicas, 2 to 4 are to be", st.Replicas)
		}
		_, now := c.controller(t)
		return now > terms
	})
	now, _ := c.controller(t)
	t.Logf("%s controlled, %s does %v later", was, now, time.Since(died))
	// Through one that may not control, by hand: all see it, and it is done.
	if err := rest[1].client.SetReplicas(t.Context(), fn, 4); err != nil {
		t.Fatal(err)
	}
	for i, e := range rest {
		waitFor(t, 20*time.Second, fmt.Sprintf("remaining coordinator %d to tell of four", i+1), func() error {
			st, err := e.client.Describe(t.Context(), fn)
			if err == nil && (st.Available != 4 || st.Replicas != 4) {
				err = fmt.Errorf("it tells of %d, %d ready", st.Replicas, st.Available)
			}
			return err
		})
	}
	load.stop(t)
	if load.second > load.calls/10 {
		t.Errorf("%d of %d calls had to be repeated", load.second, load.calls)
	}
	within(t, 30*time.Second, "it has fewer once nobody calls", func() bool { return seen().Available == 2 })
	waitFor(t, 40*time.Second, "all coordinators to be back", func() error { return allReady(t.Context(), c.Gateways()) })

	// All load enters where replicas are not controlled, and more wait than run.
	leads, _ := c.controller(t)
	for i, e := range entries {
		if coordinatorPart(i) == leads {
			continue
		}
		other := &cluster{Cluster: c.Cluster, gateway: e.gateway, client: e.client}
		stop := other.load(t, fn, 7, "/sleep?ms=200")
		waitFor(t, 20*time.Second, "as many as the load needs", func() error {
			if st := seen(); st.Available != 4 {
				return fmt.Errorf("%d are there", st.Available)
			}
			return nil
		})
		t.Logf("%d calls through %s, none failed", stop(), coordinatorPart(i))
		break
	}
}

// coordinatorPart is the name of the coordinator behind the gateway of that index.
func coordinatorPart(i int) string {
	if i == 0 {
		return "coordinator"
	}
	return fmt.Sprintf("coordinator-%d", i+1)
}

// controller finds who controls replicas by what coordinators say when they begin to,
// and how often one has begun.
func (c *cluster) controller(t testing.TB) (name string, terms int) {
	t.Helper()
	const says = "controls replicas from now on"
	latest := ""
	for i := range c.Gateways() {
		b, err := os.ReadFile(filepath.Join(c.State(), "logs", coordinatorPart(i)+".log"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			if !bytes.Contains(line, []byte(says)) {
				continue
			}
			terms++
			if at := string(line[:min(len(line), 40)]); at > latest {
				latest, name = at, coordinatorPart(i)
			}
		}
	}
	if name == "" {
		t.Fatal("no coordinator says that it controls replicas")
	}
	return name, terms
}
