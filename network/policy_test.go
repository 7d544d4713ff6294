package network

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestASandboxReachesWhatIsListedAndNothingElse(t *testing.T) {
	r := newRig(t)
	for _, a := range []string{world, unlisted, forbidden, metadata, alibaba} {
		theWorld.serve(t, a+":80")
	}
	theWorld.serve(t, world+":81")
	p, a := r.attach("lists", want(world+"/32:80/tcp", world+"/32:90-99/tcp"))
	theWorld.serve(t, world+":99")
	reaches(t, p, world+":80")
	reaches(t, p, world+":99")
	unreachable(t, p, world+":81")
	unreachable(t, p, unlisted+":80")

	// With a list of everything, what is never reached is not either; a list of
	// everything in tcp is not one in udp.
	q, _ := r.attach("all", want("0.0.0.0/0:1-65535/tcp"))
	reaches(t, q, world+":81")
	reaches(t, q, unlisted+":80")
	for _, never := range []string{metadata, alibaba, forbidden} {
		if err := talks(fromHost, never+":80", soon); err != nil {
			t.Fatalf("the host does not reach %s, so this proves nothing: %v", never, err)
		}
		unreachable(t, q, never+":80")
	}
	udp(t, q, theWorld, world+":53", false)

	// Without a list, nothing; only the sandbox's own loopback.
	n, _ := r.attach("none", want())
	unreachable(t, n, world+":80")
	unreachable(t, n, a.Gateway.String()+":80")

	d, _ := r.attach("udp", want(world+"/32:53/udp"))
	udp(t, d, theWorld, world+":53", true)
	unreachable(t, d, world+":80")
}

// udp sends a datagram from one place to a socket of the other.
func udp(t *testing.T, from, to *place, address string, arrives bool) {
	t.Helper()
	var in net.PacketConn
	var out net.Conn
	if err := to.ns.do(func() (err error) { in, err = net.ListenPacket("udp4", address); return err }); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := from.ns.do(func() (err error) { out, err = net.Dial("udp4", address); return err }); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for range 3 {
		out.Write([]byte("x")) // a refusal may come back as an error
	}
	in.SetReadDeadline(time.Now().Add(wait))
	_, _, err := in.ReadFrom(make([]byte, 8))
	if got := err == nil; got != arrives {
		t.Errorf("a datagram to %s arrives: %v", address, got)
	}
}

func TestASandboxReachesNoDaemonOfTheHost(t *testing.T) {
	r := newRig(t)
	everything := want("0.0.0.0/0:1-65535/tcp")
	everything.Ports = []Port{{"tcp", 2100, 80}} // which makes the bridge route 127.0.0.0/8
	p, a := r.attach("one", everything)
	l, err := net.Listen("tcp4", "0.0.0.0:7946") // a daemon on every address
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	greet(l)
	// Loopback addresses leave the sandbox only if it can have them routed.
	for _, c := range []string{"link set lo down", "route add 127.0.0.0/8 via " + a.Gateway.String() + " dev eth0"} {
		// The addresses of the loopback would be local: it is gone, as one with power inside could have it.
		ip(t, p, c)
	}
	ip(t, p, "addr flush dev lo")
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, a := range addrs {
		address, err := netip.ParsePrefix(a.String())
		if err != nil || !address.Addr().Is4() {
			continue
		}
		to := address.Addr().String() + ":7946"
		if err := talks(fromHost, to, soon); err != nil {
			t.Fatalf("the daemon is not there: %v", err)
		}
		unreachable(t, p, to)
		tried++
	}
	if tried < 3 {
		t.Errorf("%d addresses of the host, want its loopback, the bridge and its uplink", tried)
	}
	// And what is not TCP: no ping either.
	if out, err := within(p, "ping", "-c1", "-W1", a.Gateway.String()); err == nil {
		t.Errorf("the gateway answers: %s", out)
	}
}

func within(p *place, args ...string) ([]byte, error) {
	return exec.Command("nsenter", append([]string{"--net=" + p.path}, args...)...).CombinedOutput()
}

func ip(t *testing.T, p *place, args string) {
	t.Helper()
	if out, err := within(p, append([]string{"ip"}, strings.Fields(args)...)...); err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

func TestSandboxesDoNotReachEachOther(t *testing.T) {
	r := newRig(t)
	w := want("0.0.0.0/0:1-65535/tcp")
	w.Ports = []Port{{"tcp", 2200, 80}}
	p, a := r.attach("one", w)
	w.Ports = []Port{{"tcp", 2201, 80}}
	q, b := r.attach("two", w)
	if a.Address == b.Address {
		t.Fatal("two sandboxes have one address")
	}
	p.serve(t, "0.0.0.0:80")
	q.serve(t, "0.0.0.0:80")
	for _, to := range []string{
		b.Address.String() + ":80",   // over the bridge
		hostOut + ":2201",            // by the port it published
		a.Gateway.String() + ":2201", // on any address of the host
		hostOut + ":2200",            // its own
	} {
		unreachable(t, p, to)
	}
	// Nor where it has the neighbour's hardware address and need not ask for it.
	ip(t, p, "neigh replace "+b.Address.String()+" lladdr "+mac(t, q)+" dev eth0")
	unreachable(t, p, b.Address.String()+":80")
	// Nor by way of the gateway.
	ip(t, p, "route add "+b.Address.String()+"/32 via "+a.Gateway.String()+" dev eth0")
	unreachable(t, p, b.Address.String()+":80")
	reaches(t, theWorld, hostOut+":2201")
}

func mac(t *testing.T, p *place) string {
	t.Helper()
	out, err := within(p, "ip", "-o", "link", "show", "eth0")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(out))
	for i := range f {
		if f[i] == "link/ether" {
			return f[i+1]
		}
	}
	t.Fatalf("no hardware address: %s", out)
	return ""
}

func TestASandboxCannotTakeAnAddressThatIsNotItsOwn(t *testing.T) {
	r := newRig(t)
	theWorld.serve(t, world+":80")
	q, b := r.attach("rich", want(world+"/32:80/tcp", world+"/32:53/udp"))
	p, _ := r.attach("poor", want())
	reaches(t, q, world+":80")
	udp(t, q, theWorld, world+":53", true)
	// What the other may open, it may not by using the other's addresses.
	theirs := mac(t, q)
	q.serve(t, "0.0.0.0:8080")
	if err := talks(fromHost, b.Address.String()+":8080", soon); err != nil {
		t.Fatal(err)
	}
	// It need not ask for the gateway, which would give it away already.
	gateway := func() {
		ip(t, p, "neigh replace "+b.Gateway.String()+" lladdr "+bridgeMAC(t, r)+" nud permanent dev eth0")
	}
	gateway()
	ip(t, p, "addr add "+b.Address.String()+"/32 dev eth0")
	ip(t, p, "route replace default via "+b.Gateway.String()+" dev eth0 src "+b.Address.String())
	unreachable(t, p, world+":80")
	udp(t, p, theWorld, world+":53", false) // which needs no answer
	ip(t, p, "link set eth0 address "+theirs)
	gateway()
	ip(t, p, "route replace default via "+b.Gateway.String()+" dev eth0 src "+b.Address.String())
	unreachable(t, p, world+":80")
	udp(t, p, theWorld, world+":53", false) // which needs no answer
}

func bridgeMAC(t *testing.T, r *rig) string {
	t.Helper()
	l, err := r.links.LinkByName(r.cfg.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().HardwareAddr.String()
}

// What an ARP reply says of another's address does not reach the host.
func TestTheHostDoesNotBelieveForgedNeighbours(t *testing.T) {
	r := newRig(t)
	_, b := r.attach("honest", want())
	p, _ := r.attach("liar", want())
	ip(t, p, "addr add "+b.Address.String()+"/32 dev eth0")
	own := mac(t, p)
	// Asking for the gateway from the forged address announces it.
	if err := p.ns.do(func() error {
		d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{IP: b.Address.AsSlice()}}
		c, err := d.Dial("tcp4", b.Gateway.String()+":80")
		if err == nil {
			c.Close()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	neigh, err := exec.Command("ip", "neigh").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(neigh), "\n") {
		if strings.HasPrefix(l, b.Address.String()+" ") && strings.Contains(l, own) {
			t.Errorf("the host believes %s", l)
		}
	}
}

func TestPublishedPortsAreForTheOutsideAndTheHost(t *testing.T) {
	r := newRig(t)
	w := want()
	w.Ports = []Port{{"tcp", 2300, 8080}}
	p, a := r.attach("web", w)
	p.serve(t, "0.0.0.0:8080")
	p.serve(t, "0.0.0.0:8081")
	reaches(t, theWorld, hostOut+":2300")
	for _, to := range []string{"127.0.0.1:2300", hostOut + ":2300", a.Gateway.String() + ":2300"} {
		if err := talks(fromHost, to, soon); err != nil {
			t.Errorf("the host does not reach %s: %v", to, err)
		}
	}
	// Only that port, and only by the host's: who routes to the subnet is refused.
	unreachable(t, theWorld, hostOut+":8081")
	unreachable(t, theWorld, a.Address.String()+":8080")
	unreachable(t, theWorld, a.Address.String()+":8081")
	r.detach("web")
	unreachable(t, theWorld, hostOut+":2300")
}

// The next sandbox with an address has no part in the connections of the last.
func TestConnectionsEndWithTheAttachment(t *testing.T) {
	r := newRig(t)
	w := want(world + "/32:80/tcp")
	w.Ports = []Port{{"tcp", 2340, 80}}
	p, a := r.attach("one", w)
	p.serve(t, "0.0.0.0:80")
	theWorld.serve(t, world+":80")
	reaches(t, p, world+":80")
	reaches(t, theWorld, hostOut+":2340")
	flows := func() int {
		t.Helper()
		b, err := os.ReadFile("/proc/net/nf_conntrack")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "src="+a.Address.String()+" ")
	}
	if flows() < 2 {
		t.Fatalf("%d connections are known, want one each way", flows())
	}
	r.detach("one")
	if n := flows(); n != 0 {
		t.Errorf("%d connections remain", n)
	}
}

func TestPublishedDatagramsArrive(t *testing.T) {
	r := newRig(t)
	w := want()
	w.Ports = []Port{{"udp", 2350, 53}}
	p, _ := r.attach("dns", w)
	var in net.PacketConn
	if err := p.ns.do(func() (err error) { in, err = net.ListenPacket("udp4", "0.0.0.0:53"); return err }); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go func() { // ends with the socket
		b := make([]byte, 8)
		for {
			n, from, err := in.ReadFrom(b)
			if err != nil {
				return
			}
			in.WriteTo(b[:n], from)
		}
	}()
	var c net.Conn
	if err := theWorld.ns.do(func() (err error) { c, err = net.Dial("udp4", hostOut+":2350"); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("x"))
	c.SetReadDeadline(time.Now().Add(soon))
	if _, err := c.Read(make([]byte, 8)); err != nil {
		t.Error(err)
	}
}

// A host whose iptables forward nothing of themselves, as with Docker on it.
func TestAHostThatForwardsNothingForwardsForSandboxes(t *testing.T) {
	r := newRig(t)
	policy := func(p string) {
		t.Helper()
		if out, err := exec.Command("iptables", "-P", "FORWARD", p).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	policy("DROP")
	defer policy("ACCEPT")
	theWorld.serve(t, world+":80")
	w := want(world + "/32:80/tcp")
	w.Ports = []Port{{"tcp", 2360, 80}}
	p, _ := r.attach("one", w)
	p.serve(t, "0.0.0.0:80")
	reaches(t, p, world+":80")
	reaches(t, theWorld, hostOut+":2360")
}

func TestThereIsNoIPv6(t *testing.T) {
	r := newRig(t)
	p, _ := r.attach("six", want("0.0.0.0/0:1-65535/tcp"))
	out, err := within(p, "ip", "-6", "addr", "show", "dev", "eth0")
	if err != nil || len(bytes.TrimSpace(out)) != 0 {
		t.Errorf("%v: %s", err, out)
	}
	// One with power inside switches it on; its frames go nowhere.
	if err := p.ns.do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("0"), 0) }); err != nil {
		t.Fatal(err)
	}
	ip(t, p, "addr add fd00:ec2::1/64 dev eth0 nodad")
	if out, err := exec.Command("ip", "addr", "add", "fd00:ec2::254/64", "dev", r.cfg.Bridge, "nodad").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := net.Listen("tcp6", "[fd00:ec2::254]:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := p.ns.do(func() error {
		c, err := net.DialTimeout("tcp6", "[fd00:ec2::254]:80", wait)
		if err == nil {
			c.Close()
			t.Error("an IPv6 address is reached")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestCheckSeesWhatSomebodyTookAway(t *testing.T) {
	for name, spoil := range map[string][]string{
		"table":     {"nft", "delete", "table", "inet", "faasd-sec-fsec0"},
		"frames":    {"nft", "delete", "table", "bridge", "faasd-sec-fsec0"},
		"base rule": {"nft", "flush", "chain", "inet", "faasd-sec-fsec0", "input"},
		"chain":     {"nft", "flush", "chain", "inet", "faasd-sec-fsec0", chain("one")},
		"element":   {"nft", "flush", "map", "bridge", "faasd-sec-fsec0", "ports"},
		"ingress":   {"tc", "qdisc", "del", "dev", "LINK", "root"},
		"slower":    {"tc", "qdisc", "change", "dev", "LINK", "root", "tbf", "rate", "200mbit", "burst", "100k", "latency", "25ms"},
		"redirect":  {"tc", "qdisc", "del", "dev", "LINK", "ingress"},
		"isolation": {"bridge", "link", "set", "dev", "LINK", "isolated", "off"},
		"device":    {"ip", "link", "del", "IFB"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			_, a := r.attach("one", want(world+"/32:80/tcp"))
			if err := r.Check(r.ctx, "one"); err != nil {
				t.Fatal(err)
			}
			for i, s := range spoil {
				spoil[i] = strings.NewReplacer("LINK", a.Link, "IFB", r.ifbName("one")).Replace(s)
			}
			if out, err := exec.Command(spoil[0], spoil[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", spoil, err, out)
			}
			if err := r.Check(r.ctx, "one"); err == nil {
				t.Error("nothing is amiss")
			}
			// A live sandbox without its limits loses its network. The policy is
			// written anew, so that it alone is no reason to.
			kept, err := r.Recover(r.ctx, []string{"one"})
			policy := spoil[0] == "nft"
			if policy != (len(kept) == 1) || err != nil {
				t.Fatalf("kept %v, %v", kept, err)
			}
			if !policy { // and may have another
				r.attach("one", want(world+"/32:80/tcp"))
			}
		})
	}
}

func TestWantIsRefused(t *testing.T) {
	for name, w := range map[string]Want{
		"no ingress":    {Egress: 1e6},
		"no egress":     {Ingress: 1e6},
		"too slow":      {Ingress: 1e6, Egress: 1},
		"too fast":      {Ingress: 1e6, Egress: 1e15},
		"protocol":      {Ingress: 1e6, Egress: 1e6, Ports: []Port{{"sctp", 1, 1}}},
		"no host port":  {Ingress: 1e6, Egress: 1e6, Ports: []Port{{"tcp", 0, 1}}},
		"host twice":    {Ingress: 1e6, Egress: 1e6, Ports: []Port{{"tcp", 1, 1}, {"tcp", 1, 2}}},
		"inside twice":  {Ingress: 1e6, Egress: 1e6, Ports: []Port{{"tcp", 1, 1}, {"tcp", 2, 1}}},
		"six":           {Ingress: 1e6, Egress: 1e6, Allow: []Allow{{Net: netip.MustParsePrefix("::/0"), Protocol: "tcp", From: 1, To: 2}}},
		"not a network": {Ingress: 1e6, Egress: 1e6, Allow: []Allow{{Net: netip.MustParsePrefix("10.1.2.3/8"), Protocol: "tcp", From: 1, To: 2}}},
		"no port":       {Ingress: 1e6, Egress: 1e6, Allow: []Allow{{Net: netip.MustParsePrefix("10.0.0.0/8"), Protocol: "tcp", From: 0, To: 0}}},
		"backwards":     {Ingress: 1e6, Egress: 1e6, Allow: []Allow{{Net: netip.MustParsePrefix("10.0.0.0/8"), Protocol: "tcp", From: 2, To: 1}}},
	} {
		if err := w.check(); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, s := range []string{"", "10.0.0.0/8", "10.0.0.0/8:80", "10.0.0.0:80/tcp", "10.0.0.0/8:x/tcp", "10.0.0.0/8:80/icmp",
		"10.0.0.0/8:80-/tcp", "10.0.0.0/8:70000/tcp", "10.0.0.0/8:80/tcp drop"} {
		if a, err := api.ParseReach("allow", s); err == nil {
			t.Errorf("%q is %v", s, a)
		}
	}
	for _, s := range []string{"10.0.0.0/8:80/tcp", "0.0.0.0/0:1-65535/udp"} {
		if a, err := api.ParseReach("allow", s); err != nil || a.String() != s {
			t.Errorf("%q is %v, %v", s, a, err)
		}
	}
}
