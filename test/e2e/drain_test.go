package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/enrol"
)

// TestDrainUnderLoadLosesNothing drains one of two nodes by an operator's word,
// has it work again, and then tells its daemon to stop, all under load: every call
// is answered, with its own answer.
func TestDrainUnderLoadLosesNothing(t *testing.T) {
	c := up(t, 2)
	fn := c.deploy(t, "carried", func(d *client.Deployment) { d.MaxInFlight = 2 })
	c.must(t, fn, "/", "")
	var calls, by1, by2 atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				path, query, want := "/", "", fmt.Sprintf("%d-%d", w, i)
				if i%5 == 0 {
					path, query = "/sleep", "ms=300"
				}
				body := want
				if i%7 == 0 { // offered before it is sent
					body = strings.Repeat(want, 300<<10/len(want))
				}
				resp, got, err := c.invoke(t, fn, client.Request{Path: path, Query: query, Body: strings.NewReader(body)})
				if path == "/sleep" {
					body = "slept"
				}
				if calls.Add(1); err != nil || string(got) != body {
					t.Errorf("call %s: %.40q, %v", want, got, err)
					continue
				}
				switch resp.Meta.Node {
				case "node-1":
					by1.Add(1)
				case "node-2":
					by2.Add(1)
				}
			}
		})
	}
	state := filepath.Join(c.State(), "coordinator")
	load := func() api.NodeLoad {
		nodes, err := c.client.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if n.Meta.ID == "node-1" {
				return n.Load
			}
		}
		return api.NodeLoad{}
	}
	both := func(when string) {
		t.Helper()
		one, two := by1.Load(), by2.Load()
		eventually(t, "both nodes serve "+when, func() bool { return by1.Load() > one+10 && by2.Load() > two+10 })
	}
	both("at first")
	if err := enrol.RequestDrain(t.Context(), state, "node-1", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the drained node has nothing", func() bool { l := load(); return l.Draining && l.Running == 0 && l.InFlight == 0 })
	was, others := by1.Load(), by2.Load()
	eventually(t, "the other one serves", func() bool { return by2.Load() > others+50 })
	if now := by1.Load(); now != was {
		t.Errorf("the drained node served %d more", now-was)
	}
	if err := enrol.RequestDrain(t.Context(), state, "node-1", false); err != nil {
		t.Fatal(err)
	}
	both("once it works again")
	c.kill(t, "node-1", syscall.SIGTERM)
	c.served(t, "node-1")
	both("after its daemon was told to stop")
	close(stop)
	wg.Wait()
	t.Logf("%d calls, %d by the node that drained twice, %d by the other", calls.Load(), by1.Load(), by2.Load())
	if err := enrol.RequestDrain(t.Context(), state, "node-9", true); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("a node that is not there: %v", err)
	}
	idleAgain(t, c)
}
