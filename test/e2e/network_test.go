package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
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
			"-network-bridge", bridge, "-network-subnet", "10.214.0.0/24",
			"-network-allow", "198.51.100.0/24:1-65535/tcp", "-network-never", "198.51.100.3/32")
	})
	world := beyond(t, "198.51.100", 2, 3)
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
	// What it may open is what it asked for: within what the node lets functions
	// open, and less what that never lets them.
	reach := func(list []string, to string) string {
		a.ask(t, api.Needs{Resources: api.Resources{Ingress: 20e6, Egress: 20e6}, Allow: list})
		return direct.must(t, fn, "/dial?to="+to, "")
	}
	for _, c := range []struct {
		list    []string
		to      string
		reached bool
	}{
		{nil, world[2], true}, {nil, world[3], false},
		{[]string{"198.51.100.0/24:1-65535/tcp"}, world[2], true},
		{[]string{"198.51.100.0/24:1-65535/tcp"}, world[3], false},
		{[]string{"198.51.100.2/32:1-1023/tcp"}, world[2], false},
		{[]string{"198.51.100.4/32:1-65535/tcp"}, world[2], false},
	} {
		if got := reach(c.list, c.to); (got == "reached") != c.reached || strings.Contains(got, "permitted") {
			t.Errorf("%s with the list %q: %s", c.to, c.list, got)
		}
	}
	a.ask(t, api.Needs{Resources: api.Resources{Ingress: 20e6, Egress: 20e6}, Allow: []string{"198.51.0.0/16:443/tcp"}})
	if _, _, err := direct.invoke(t, fn, client.Request{}); api.CodeOf(err) != api.CodeNoRoom || !strings.Contains(err.Error(), "what the task may open") {
		t.Errorf("more than the node lets functions open: %v", err)
	}
	// The function serves on the handed socket: it opens internet sockets only where
	// its task has a network.
	a.ask(t, api.Needs{})
	if got := direct.must(t, fn, "/dial?to="+world[2], ""); !strings.Contains(got, "socket: ") {
		t.Errorf("without a network: %s", got)
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

// beyond is a network namespace that this host routes to by a link of its own, with
// a listener at each of the addresses net.N; it gives where they listen.
func beyond(t *testing.T, net24 string, hosts ...int) map[int]string {
	t.Helper()
	f := newFabric(t, 0)
	link := f.prefix + "w"
	run(t, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", f.spaces[0])
	run(t, "ip", "addr", "add", net24+".1/24", "dev", link)
	run(t, "ip", "link", "set", link, "up")
	out := map[int]string{}
	for _, h := range hosts {
		addr := fmt.Sprintf("%s.%d", net24, h)
		run(t, "ip", "-n", f.spaces[0], "addr", "add", addr+"/24", "dev", "eth0")
		run(t, "ip", "-n", f.spaces[0], "link", "set", "eth0", "up")
		err := f.within(0, func() error {
			ln, err := net.Listen("tcp", addr+":0")
			if err != nil {
				return err
			}
			t.Cleanup(func() { ln.Close() })
			go http.Serve(ln, http.NotFoundHandler()) // ends with the listener
			out[h] = ln.Addr().String()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
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
