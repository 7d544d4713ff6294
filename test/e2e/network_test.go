package e2e

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/network"
)

// A task that asks for a network has one, shaped to its rates; it goes with the
// sandbox, and survives the node's daemon.
func TestATaskThatAsksForANetworkHasOne(t *testing.T) {
	const bridge = "fsece2e"
	state := t.TempDir()
	t.Cleanup(func() { // after the cluster has ended
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cfg := network.Default(state)
		cfg.Bridge, cfg.Subnet = bridge, netip.MustParsePrefix("10.214.0.0/24")
		m, err := network.Open(ctx, cfg)
		if err != nil {
			t.Error(err)
			return
		}
		if err := m.Remove(ctx); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	c := up(t, 1, func(cfg *local.Config) {
		cfg.NodeArgs = append(cfg.NodeArgs, "-ingress", "100M", "-egress", "100M", "-port-range", "31500-31509",
			"-network-bridge", bridge, "-network-subnet", "10.214.0.0/24")
	})
	fn := c.deploy(t, "asker")
	direct, a := c.asCoordinator(t, fn)
	if got := links(t, bridge); len(got) != 0 {
		t.Errorf("without anybody who asked: %q", got)
	}
	a.ask(t, api.Needs{Resources: api.Resources{Ingress: 20e6, Egress: 20e6}, Ports: []api.PortNeed{{Protocol: api.ProtocolTCP, Count: 1}}})
	direct.must(t, fn, "/", "")
	got := links(t, bridge)
	if len(got) != 1 {
		t.Fatalf("links of the bridge: %q", got)
	}
	if out := output(t, "tc", "qdisc", "show", "dev", got[0]); !strings.Contains(out, "tbf") || !strings.Contains(out, "rate 20Mbit") {
		t.Errorf("into the sandbox: %s", out)
	}
	// More than the node lends is refused, and leaves nothing.
	a.ask(t, api.Needs{Resources: api.Resources{Ingress: 110e6, Egress: 1e6}})
	if _, _, err := direct.invoke(t, fn, client.Request{}); api.CodeOf(err) != api.CodeNoRoom {
		t.Errorf("110 of 100 Mbit/s: %v", err)
	}
	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the network goes with the sandbox", func() bool { return len(links(t, bridge)) == 0 })
}

// links are the ports of a bridge.
func links(t *testing.T, bridge string) []string {
	t.Helper()
	var out []string
	for line := range strings.SplitSeq(output(t, "ip", "-o", "link", "show", "type", "veth"), "\n") {
		if strings.Contains(line, "master "+bridge+" ") {
			name, _, _ := strings.Cut(strings.Fields(line)[1], "@")
			out = append(out, name)
		}
	}
	return out
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}
