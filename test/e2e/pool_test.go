package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestPool has functions start in sandboxes that waited, freeze and thaw, and
// takes away what waits.
func TestPool(t *testing.T) {
	c := up(t, 1, func(cfg *local.Config) {
		cfg.NodeArgs = []string{"-pool-min", "2", "-pool-max", "2", "-freeze-after", "1s"}
	})
	full := func() { t.Helper(); c.poolIs(t, 2) }
	full()
	first := c.deploy(t, "first")
	c.must(t, first, "/", "") // pulls the image
	t.Run("starts take what waits", func(t *testing.T) {
		for i := range 5 {
			fn := c.deploy(t, fmt.Sprintf("start-%d", i))
			full()
			resp, body, err := c.invoke(t, fn, client.Request{Body: strings.NewReader("hello")})
			if err != nil || string(body) != "hello" || resp.Meta.Start != "pooled" {
				t.Fatalf("%+v, %q, %v", resp, body, err)
			}
			s := c.sandbox(t, fn)
			if s.Start != api.StartPooled || s.StartWhy != "" {
				t.Errorf("%+v", s)
			}
			t.Logf("call %v, %v in the server, of which the start %d ms", resp.Meta.Duration, resp.Meta.InServer, s.StartMs)
			if err := c.client.Remove(t.Context(), fn); err != nil {
				t.Error(err)
			}
		}
		for _, name := range []string{"pool_bind", "key_release", "sandbox_start", "pool_fill"} {
			name = "faasd_sec_node_" + name + "_seconds"
			sum, n := c.metric(t, "node-1", name+"_sum"), c.metric(t, "node-1", name+"_count")
			t.Logf("%s: %.0f, %.2f ms each", name, n, 1000*sum/n)
		}
	})
	t.Run("idle sandboxes freeze and thaw", func(t *testing.T) {
		c.must(t, first, "/", "")
		id := c.sandbox(t, first).ID
		for range 3 {
			eventually(t, "it is frozen", func() bool { return c.sandbox(t, first).State == "frozen" })
			resp, body, err := c.invoke(t, first, client.Request{Body: strings.NewReader("again")})
			if err != nil || string(body) != "again" || resp.Meta.Start != "warm" {
				t.Fatalf("%+v, %q, %v", resp, body, err)
			}
			t.Logf("call of a frozen one: %v, %v in the server", resp.Meta.Duration, resp.Meta.InServer)
		}
		if now := c.sandbox(t, first); now.ID != id {
			t.Errorf("%s serves, %s was frozen", now.ID, id)
		}
		eventually(t, "it is frozen", func() bool { return c.sandbox(t, first).State == "frozen" })
		began := time.Now()
		if err := c.client.Remove(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a frozen one is removed", func() bool { return c.metric(t, "node-1", "faasd_sec_node_sandboxes") == 0 })
		t.Logf("a frozen one was removed in %v", time.Since(began))
	})
	t.Run("one that dies is replaced", func(t *testing.T) {
		full()
		was := c.tasks(t)
		for id, pid := range was {
			t.Logf("killing %s", id)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			break
		}
		c.replaced(t, was, 1)
	})
	t.Run("a replaced agent replaces them", func(t *testing.T) {
		full()
		was := c.tasks(t)
		agent := bin(t, "agent")
		b, err := os.ReadFile(agent)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(agent+".new", b, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(agent+".new", agent); err != nil {
			t.Fatal(err)
		}
		c.replaced(t, was, 2)
		full()
		if got := c.must(t, c.deploy(t, "after"), "/", "still there"); got != "still there" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a killed daemon's are not used again", func(t *testing.T) {
		full()
		was := c.tasks(t)
		c.kill(t, "node-1", syscall.SIGKILL)
		c.served(t, "node-1")
		// The one that serves goes on; the two that waited do not.
		c.replaced(t, was, 2)
	})
}

func (c *cluster) poolIs(t testing.TB, n float64) {
	t.Helper()
	eventually(t, "the pool is full", func() bool { return c.metric(t, "node-1", "faasd_sec_node_pool_depth") == n })
}

// replaced waits until n of the tasks that were are gone, and as many others run.
func (c *cluster) replaced(t testing.TB, was map[string]int, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d others run", n), func() bool {
		now, kept := c.tasks(t), 0
		for id := range was {
			if _, ok := now[id]; ok {
				kept++
			}
		}
		return len(now) == len(was) && kept == len(was)-n
	})
}

// tasks lists the tasks of the first node with their pids.
func (c *cluster) tasks(t testing.TB) map[string]int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	run := c.runDir()
	out, err := exec.CommandContext(ctx, "ctr", "-a", filepath.Join(run, "containerd.sock"),
		"-n", filepath.Base(run)+"-n1", "tasks", "ls").Output()
	if err != nil {
		t.Fatal(err)
	}
	tasks := map[string]int{}
	for _, line := range slices.Collect(strings.Lines(string(out)))[1:] {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "RUNNING" {
			continue
		}
		pid, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		tasks[f[0]] = pid
	}
	return tasks
}
