package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestAttachAndDetachLeaveNothing(t *testing.T) {
	r := newRig(t)
	before := r.warm()
	w := want(world+"/32:80/tcp", "198.51.100.0/24:1000-2000/udp")
	w.Ports = []Port{{"tcp", 2001, 80}, {"udp", 2001, 53}}
	for _, end := range []string{"detached", "ended first"} {
		p, err := newPlace("/mnt/one")
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.Attach(r.ctx, "one", p.path, w)
		if err != nil {
			t.Fatal(err)
		}
		if !r.cfg.Subnet.Contains(a.Address) || a.Address == a.Gateway {
			t.Errorf("address %s is not of %s", a.Address, r.cfg.Subnet)
		}
		if r.state() == before {
			t.Error("the state shows nothing of an attachment; it proves nothing")
		}
		if end == "ended first" {
			if err := p.end(); err != nil {
				t.Fatal(err)
			}
		}
		r.detach("one")
		r.detach("one") // and again is no error
		settled(t, func() bool { return r.state() == before })
		same(t, before, r.state())
		if end == "detached" {
			if err := p.end(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestTwentyAtOnceShareNothing(t *testing.T) {
	r := newRig(t)
	before := r.warm()
	const n = 20
	places := make([]*place, n)
	for i := range places {
		places[i] = r.sandbox()
	}
	got := make([]Attachment, n)
	each := func(f func(i int) error) {
		t.Helper()
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { errs[i] = f(i) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	id := func(i int) string { return fmt.Sprintf("many-%d", i) }
	each(func(i int) (err error) {
		w := want()
		w.Ports = []Port{{"tcp", uint16(3000 + i), 80}}
		got[i], err = r.Attach(r.ctx, id(i), places[i].path, w)
		return err
	})
	seen := map[netip.Addr]bool{}
	for i, a := range got {
		if seen[a.Address] {
			t.Errorf("%s was given twice", a.Address)
		}
		seen[a.Address] = true
		places[i].serve(t, "0.0.0.0:80")
		reaches(t, theWorld, fmt.Sprintf("%s:%d", hostOut, 3000+i))
	}
	// One goes while others stay.
	r.detach(id(0))
	for i := 1; i < n; i++ {
		if err := r.Check(r.ctx, id(i)); err != nil {
			t.Error(err)
		}
	}
	each(func(i int) error { return r.Detach(r.ctx, id(i)) })
	same(t, before, r.state())
}

func TestAttachmentsOutliveTheDaemon(t *testing.T) {
	r := newRig(t)
	before := r.warm()
	w := want(world + "/32:80/tcp")
	w.Ports = []Port{{"tcp", 2500, 80}}
	theWorld.serve(t, world+":80")
	p, a := r.attach("lives", w)
	p.serve(t, "0.0.0.0:80")
	r.attach("died", want())
	if _, err := Open(r.ctx, r.cfg); err == nil {
		t.Fatal("two managers have one directory")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	// The network is the kernel's: it stays while no daemon runs.
	reaches(t, p, world+":80")
	r.reopen(r.cfg)
	kept, err := r.Recover(r.ctx, []string{"lives", "never was"})
	if err != nil {
		t.Fatal(err)
	}
	if len(kept) != 1 || kept[0].Address != a.Address || kept[0].ID != "lives" || !slices.Equal(kept[0].Ports, w.Ports) {
		t.Fatalf("kept %+v, want %+v", kept, a)
	}
	reaches(t, p, world+":80")
	reaches(t, theWorld, hostOut+":2500")
	unreachable(t, p, unlisted+":80")
	// Its address and its port are still its own.
	_, b := r.attach("new", want())
	if b.Address == a.Address {
		t.Error("an address was given twice")
	}
	if _, err := r.Attach(r.ctx, "thief", r.sandbox().path, w); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a port was given twice: %v", err)
	}
	r.detach("new")
	r.detach("lives")
	same(t, before, r.state())
}

func TestAnAddressIsFreedWhenItsRecordsAreLost(t *testing.T) {
	r := newRig(t)
	before := r.warm()
	r.attach("lost", want(world+"/32:80/tcp"))
	if err := os.Remove(r.recordPath("lost")); err != nil {
		t.Fatal(err)
	}
	delete(r.records, "lost")
	if _, err := r.Recover(r.ctx, []string{"lost"}); err != nil {
		t.Fatal(err)
	}
	if all, err := r.leased(); err != nil || len(all) != 0 {
		t.Errorf("reserved: %v, %v", all, err)
	}
	// What is named after an id that nobody knows cannot be found: the device
	// that shaped it, which leads nowhere now, and what the plugins remember.
	after := strings.ReplaceAll(r.state(), "/var/lib/cni/results/"+r.cfg.networkName()+"-lost-eth0\n", "")
	if ports := strings.Count(after, "veth"); ports != strings.Count(before, "veth") {
		t.Errorf("%d ports remain", ports)
	}
	if strings.Contains(after, chain("lost")) {
		t.Error("its policy remains")
	}
	if err := r.removeLinks(&record{ID: "lost"}); err != nil {
		t.Fatal(err)
	}
}

func TestTheHostsOwnNamespaceIsRefused(t *testing.T) {
	r := newRig(t)
	if _, err := r.Attach(r.ctx, "host", "/proc/self/ns/net", want()); err == nil {
		t.Fatal("the host was attached to itself")
	}
	for _, path := range []string{"/nowhere", "/proc/self/ns/mnt", "/etc/passwd"} {
		if _, err := r.Attach(r.ctx, "host", path, want()); err == nil {
			t.Errorf("%s was attached", path)
		}
	}
	for _, id := range []string{"", "../x", "a/b", "-x", "a b"} {
		if _, err := r.Attach(r.ctx, id, r.sandbox().path, want()); err == nil {
			t.Errorf("%q was attached", id)
		}
	}
	if len(r.records) != 0 {
		t.Errorf("records: %v", r.records)
	}
}

// A path that by now names another namespace, as that of a process does whose
// number is used again, is not followed.
func TestANamespaceThatTookAPathIsLeftAlone(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(t.TempDir(), "ns")
	bind := func(p *place) {
		t.Helper()
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(p.path, path, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	bind(r.sandbox())
	if _, err := r.Attach(r.ctx, "one", path, want()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(path, 0); err != nil {
		t.Fatal(err)
	}
	q, _ := r.attach("two", want(world+"/32:80/tcp"))
	bind(q)
	defer unix.Unmount(path, 0)
	r.detach("one")
	theWorld.serve(t, world+":80")
	reaches(t, q, world+":80")
}

// Sandboxes have user namespaces that own their network, and are reached by a
// process's number. What such a process has in its environment is its own affair.
func TestASandboxWithUsersOfItsOwn(t *testing.T) {
	r := newRig(t)
	before := r.warm()
	cmd := exec.Command("sleep", "600")
	cmd.Env = append(os.Environ(), "CNI_CONTAINERID=users", mark+"="+r.mark, "CNI_ARGS="+mark+"="+r.mark)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	path := fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	if _, err := r.Attach(r.ctx, "users", path, want(world+"/32:80/tcp")); err != nil {
		t.Error(err)
	}
	r.detach("users")
	same(t, before, r.state())
	if _, err := r.Attach(r.ctx, "users", path, want(world+"/32:80/tcp")); err != nil {
		t.Error(err)
	}
	theWorld.serve(t, world+":80")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	p := &place{path, &namespace{file: f}}
	reaches(t, p, world+":80")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("the sandbox ended: %v", err)
	default:
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	r.detach("users")
	settled(t, func() bool { return r.state() == before })
	same(t, before, r.state())
}

// wrapped is the plugins' directory with one of them replaced by a script, in
// which REAL is the plugin.
func wrapped(t *testing.T, cfg *Config, plugin, script string) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range plugins {
		real := filepath.Join(cfg.PluginDir, p)
		if p != plugin {
			if err := os.Symlink(real, filepath.Join(dir, p)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		s := "#!/bin/sh\n" + strings.ReplaceAll(script, "REAL", real)
		if err := os.WriteFile(filepath.Join(dir, p), []byte(s), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cfg.PluginDir = dir
}

func TestWhatThePluginsGetWrongIsUndone(t *testing.T) {
	for name, c := range map[string]struct{ plugin, script, complaint string }{
		"a rate": {"bandwidth", `REAL; rc=$?
[ "$CNI_COMMAND" = ADD ] && for l in $(ip -br link | grep -o '^bwp[0-9a-f]*'); do tc qdisc change dev $l root tbf rate 200mbit burst 100k latency 25ms; done
exit $rc`, "is shaped to"},
		"no rates":                {"bandwidth", `if [ "$CNI_COMMAND" = ADD ]; then sed 's/.*"prevResult":\({.*}\),"runtimeConfig.*/\1/' >/dev/null; exit 1; fi; REAL`, "bandwidth"},
		"a port":                  {"portmap", `[ "$CNI_COMMAND" = ADD ] && exit 1; REAL`, "portmap"},
		"an error after its work": {"portmap", `REAL; [ "$CNI_COMMAND" != ADD ]`, "portmap"},
		"time":                    {"firewall", `[ "$CNI_COMMAND" = ADD ] && sleep 60; REAL`, "deadline"},
		"IPv6": {"bridge", `REAL; rc=$?
[ "$CNI_COMMAND" = ADD ] && nsenter --net=$CNI_NETNS sh -c 'echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6'; exit $rc`, "IPv6"},
		"a second address": {"bridge", `REAL; rc=$?
[ "$CNI_COMMAND" = ADD ] && nsenter --net=$CNI_NETNS ip addr add 10.213.9.9/16 dev eth0; exit $rc`, "addresses"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			before := r.warm()
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			cfg := r.cfg
			wrapped(t, &cfg, c.plugin, c.script)
			cfg.Deadline = 5 * time.Second
			r.reopen(cfg)
			w := want(world + "/32:80/tcp")
			w.Ports = []Port{{"tcp", 2600, 80}}
			start := time.Now()
			_, err := r.Attach(r.ctx, "wrong", r.sandbox().path, w)
			if err == nil || !strings.Contains(err.Error(), c.complaint) {
				t.Errorf("attach: %v, want one of %s", err, c.complaint)
			}
			if d := time.Since(start); d > 3*cfg.Deadline {
				t.Errorf("it took %v", d)
			}
			same(t, before, r.state())
			if len(r.records) != 0 {
				t.Errorf("records: %v", r.records)
			}
		})
	}
}

func TestConfigurationsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"bridge name": func(c *Config) { c.Bridge = `x" drop` },
		"long bridge": func(c *Config) { c.Bridge = "abcdefghijklmnop" },
		"six":         func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/64") },
		"host bits":   func(c *Config) { c.Subnet = netip.MustParsePrefix("10.1.2.3/16") },
		"tiny":        func(c *Config) { c.Subnet = netip.MustParsePrefix("10.1.2.0/30") },
		"never":       func(c *Config) { c.Never = []netip.Prefix{netip.MustParsePrefix("::/0")} },
		"no deadline": func(c *Config) { c.Deadline = 0 },
		"no dir":      func(c *Config) { c.Dir = "" },
	} {
		c := Default("/x")
		change(&c)
		if err := c.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := Default("/x").check(); err != nil {
		t.Error(err)
	}
}

func TestAskedIsForAnyPartOfTheNetwork(t *testing.T) {
	for _, n := range []api.Needs{
		{Resources: api.Resources{Ingress: 1}}, {Resources: api.Resources{Egress: 1}}, {Resources: api.Resources{Ports: 1}},
		{Ports: []api.PortNeed{{Protocol: "tcp", Count: 1}}},
	} {
		if !Asked(n) {
			t.Errorf("%+v asks", n)
		}
	}
	if Asked(api.Needs{Resources: api.Resources{CPU: 1000, Memory: 1 << 30}}) {
		t.Error("cpu and memory are no network")
	}
}
