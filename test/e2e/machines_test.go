package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/runtime/containerd/daemon"
)

// machines is a cluster as it would be on machines of its own: one for
// coordinator and key broker, and one for each node, with its own containerd.
type machines struct {
	*cluster
	net         *fabric
	state, run  string
	broker      *child
	opener      *child
	coordinator *child
	flags       func(hub string) []string // more flags of the coordinator
	spare       int                       // machines without a node
	entrance    string                    // whose cluster listener nodes join at
	lent        func(*machine) []string   // flags of a node about what it lends
	nodes       []*machine                // number 0 is unused: node i is on machine i
}

// machine is one with a node.
type machine struct {
	i          int
	id, ip     string
	state, run string
	socket     string // of its containerd
	containerd *daemon.Daemon
	node       *child
}

// What each machine lends: room for two of the test's functions, not three.
const (
	lentCPU, lentMemory = "1100m", "1Gi"
	fitOnOne            = 2
)

// newMachines makes a cluster of n nodes by the documented steps: init, start
// key broker, manifest opener and coordinator, join each node with the token,
// start it.
func newMachines(t *testing.T, n int, change ...func(*machines)) *machines {
	t.Helper()
	need(t)
	state, err := os.MkdirTemp("", "fs-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(state, 0o711); err != nil {
		t.Fatal(err)
	}
	m := &machines{state: state, nodes: []*machine{nil}, lent: func(*machine) []string {
		return []string{"-capacity-cpu", lentCPU, "-capacity-memory", lentMemory}
	}}
	for _, f := range change {
		f(m)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dumpLogs(t, state)
		}
		m.leaks(t)
	})
	m.net = newFabric(t, n+m.spare)
	m.run = "/run/faasd-sec/" + m.net.prefix
	t.Cleanup(func() { m.stop(t) })
	for _, dir := range []string{m.run, filepath.Join(state, "logs")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	coordinator, broker := filepath.Join(state, "coordinator"), filepath.Join(state, "keybroker")
	out := run(t, bin(t, "faasd-sec"), "init", "--state", coordinator, "--keybroker", broker, "--owner", "any")
	token := regexp.MustCompile(`join token +(\S+)`).FindStringSubmatch(out)
	if token == nil {
		t.Fatalf("init shows no token:\n%s", out)
	}
	hub := m.net.addr(0)
	m.broker = m.start(t, 0, "keybroker", "--listen", hub+":8084", "--metrics-listen", "127.0.0.1:8085",
		"--state-dir", broker, "--insecure-passphrase")
	opener := filepath.Join(m.run, "opener", "socket")
	m.opener = m.start(t, 0, "manifest-opener", "-socket", opener, "-state-dir", filepath.Join(state, "manifest-opener"),
		"-insecure-passphrase", "-allow-swap")
	args := []string{"-manifest-opener", opener, "-state", coordinator}
	if m.flags != nil {
		args = append(args, m.flags(hub)...)
	}
	m.coordinator = m.startCoordinator(t, 0, args...)
	m.healthy(t, 0, "127.0.0.1:8085")
	m.entrance = hub
	for i := 1; i <= n; i++ {
		m.nodes = append(m.nodes, m.newMachine(t, i, token[1]))
	}
	tr := client.NewTransport()
	tr.DialContext = m.net.dialer(0)
	m.cluster = &cluster{gateway: "http://" + hub + ":8080", transport: tr}
	t.Cleanup(tr.CloseIdleConnections)
	anonymous, err := client.New(client.Config{Gateway: m.gateway, Transport: tr})
	if err != nil {
		t.Fatal(err)
	}
	defer anonymous.Close()
	info, err := anonymous.Broker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.own(t, info)
	keys, err := anonymous.ManifestKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.pins.SetOpener(m.gateway, m.openerKey(t, keys)); err != nil {
		t.Fatal(err)
	}
	m.waitNodes(t, 30*time.Second, n)
	return m
}

// startCoordinator starts one on machine i.
func (m *machines) startCoordinator(t *testing.T, i int, args ...string) *child {
	t.Helper()
	ip := m.net.addr(i)
	c := m.start(t, i, "coordinator", append(args, "-listen", ip+":8080", "-cluster-listen", ip+":7443", "-gossip-listen", ip+":7945",
		"-ops-listen", "127.0.0.1:7444", "-broker", m.net.addr(0)+":8084")...)
	m.healthy(t, i, "127.0.0.1:7444")
	return c
}

// newMachine joins machine i and starts its node.
func (m *machines) newMachine(t *testing.T, i int, token string) *machine {
	t.Helper()
	id := "m" + strconv.Itoa(i)
	x := &machine{i: i, id: id, ip: m.net.addr(i), state: filepath.Join(m.state, id), run: filepath.Join(m.run, id)}
	x.socket = filepath.Join(x.run, "containerd.sock")
	for _, dir := range []string{x.state, x.run} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	m.startContainerd(t, x)
	join := m.start(t, i, "faasd-sec", "node", "join", "--state", x.state, "--coordinator", m.entrance+":7443", "--token", token, "--id", id)
	if <-join.done; join.err != nil {
		t.Fatalf("join %s: %v", id, join.err)
	}
	m.startNode(t, x)
	return x
}

func (m *machines) startContainerd(t *testing.T, x *machine) {
	t.Helper()
	cfg := daemon.Default(filepath.Join(x.state, "containerd"))
	cfg.Socket = x.socket
	err := m.net.within(x.i, func() (err error) {
		x.containerd, err = daemon.Start(t.Context(), cfg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// startNode starts a node's daemon, for the first time or again.
func (m *machines) startNode(t *testing.T, x *machine) {
	t.Helper()
	x.node = m.start(t, x.i, "node", append(m.lent(x), "-state", x.state, "-run", x.run, "-agent", bin(t, "agent"), "-listen", x.ip+":7480",
		"-gossip-listen", x.ip+":7946", "-ops-listen", "127.0.0.1:7481", "-containerd", x.socket,
		"-containerd-namespace", m.namespace(x), "-labels", "machine="+x.id,
		"-pool-min", "1", "-pool-max", "1")...) // so that what belongs to it can be counted
	m.healthy(t, x.i, "127.0.0.1:7481")
}

func (m *machines) namespace(x *machine) string { return m.net.prefix + "-" + x.id }

// start runs one of our programs on machine i.
func (m *machines) start(t *testing.T, i int, program string, args ...string) *child {
	t.Helper()
	log := filepath.Join(m.state, "logs", fmt.Sprintf("%d-%s.log", i, program))
	c, err := m.net.start(i, log, bin(t, program), args...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// healthy waits until the daemon at addr on machine i is ready.
func (m *machines) healthy(t *testing.T, i int, addr string) {
	t.Helper()
	waitFor(t, 20*time.Second, fmt.Sprintf("machine %d to serve %s", i, addr), func() error {
		_, err := m.get(i, "http://"+addr+"/healthz")
		return err
	})
}

// get fetches a page as machine i.
func (m *machines) get(i int, url string) (string, error) {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: m.net.dialer(i), DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}

// counter reads a metric of the coordinator, 0 if it is not there yet.
func (m *machines) counter(t *testing.T, name string) float64 {
	t.Helper()
	v, err := m.metricOf(0, "127.0.0.1:7444", name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// metricOf reads a metric of the daemon at addr on machine i, all labels added up;
// 0 if it is not there yet.
func (m *machines) metricOf(i int, addr, name string) (sum float64, err error) {
	page, err := m.get(i, "http://"+addr+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(page, "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok && (strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, "{")) {
			v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				return 0, err
			}
			sum += v
		}
	}
	return sum, nil
}

// members are the nodes that the coordinator sees with their loads.
func (m *machines) members(ctx context.Context) (map[string]api.NodeView, error) {
	list, err := m.client.Nodes(ctx)
	out := map[string]api.NodeView{}
	for _, n := range list {
		if n.Load.Epoch != 0 {
			out[n.Meta.ID] = n
		}
	}
	return out, err
}

// waitNodes waits until the coordinator sees n nodes, and says how long it took.
func (m *machines) waitNodes(t *testing.T, limit time.Duration, n int) time.Duration {
	t.Helper()
	began := time.Now()
	waitFor(t, limit, fmt.Sprintf("%d members", n), func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		have, err := m.members(ctx)
		if err == nil && len(have) != n {
			err = fmt.Errorf("there are %d", len(have))
		}
		return err
	})
	return time.Since(began)
}

// held is what sandboxes hold on one machine.
type held struct{ shims, tasks, containers, processes, mounts, cgroups, sockets int }

// held counts what there is on x.
func (m *machines) held(t *testing.T, x *machine) held {
	t.Helper()
	var h held
	procs, err := procsOf(x.socket)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		switch {
		case p.role == "shim":
			h.shims++
		case p.inTask():
			h.processes++
		}
	}
	list := func(what ...string) int {
		out := run(t, "ctr", append([]string{"--address", x.socket, "--namespace", m.namespace(x)}, what...)...)
		return len(strings.Fields(out))
	}
	h.tasks, h.containers = list("tasks", "list", "-q"), list("containers", "list", "-q")
	h.mounts, h.cgroups, h.sockets = len(mountsBelow(t, x.run)), len(cgroupsOf(t, m.namespace(x)+"/")), len(socketsBelow(t, filepath.Join(x.run, "s")))
	return h
}

// steady is what there is on x once nothing comes or goes and all belongs
// together.
func (m *machines) steady(t *testing.T, x *machine) (h held) {
	t.Helper()
	waitFor(t, 15*time.Second, x.id+" to come to rest", func() error {
		was := m.held(t, x)
		time.Sleep(250 * time.Millisecond) // a pool is refilled within
		if h = m.held(t, x); h != was || h.tasks != h.containers || h.shims != h.tasks && h.shims != min(h.tasks, 1) || h.sockets != 2*h.tasks {
			return fmt.Errorf("%+v, and %+v", was, h)
		}
		return nil
	})
	return h
}

// mountsBelow lists mount points in this mount namespace.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.SplitSeq(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

// cgroupsOf lists cgroups, of all hierarchies, whose path contains part.
func cgroupsOf(t testing.TB, part string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV):
			return nil
		case err != nil:
			return err
		case d.IsDir() && strings.Contains(path, part):
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func socketsBelow(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// stop ends the cluster in order and fails for what does not end.
func (m *machines) stop(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, x := range m.nodes[1:] {
		if x.node != nil && x.node.running() {
			errs = append(errs, x.node.stop(20*time.Second))
		}
		errs = append(errs, x.containerd.Stop(ctx))
	}
	for _, c := range []*child{m.coordinator, m.opener, m.broker} {
		if c != nil && c.running() {
			errs = append(errs, c.stop(20*time.Second))
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// leaks is the last of all: nothing may be left. What is, is removed.
func (m *machines) leaks(t *testing.T) {
	procs, err := procsOf(m.state, m.run)
	if err != nil {
		t.Error(err)
	}
	for _, p := range procs {
		t.Errorf("still runs: %v %s", p, p.args)
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	for _, dir := range []string{m.state, m.run} {
		for _, mnt := range mountsBelow(t, dir) {
			t.Errorf("still mounted: %s", mnt)
			_ = syscall.Unmount(mnt, syscall.MNT_DETACH)
		}
	}
	groups := cgroupsOf(t, "/"+m.net.prefix+"-")
	for i := len(groups) - 1; i >= 0; i-- { // children first
		t.Errorf("cgroup is left: %s", groups[i])
		_ = os.Remove(groups[i])
	}
	if left := socketsBelow(t, m.run); len(left) > 0 {
		t.Errorf("sockets are left: %v", left)
	}
	if err := errors.Join(os.RemoveAll(m.run), os.RemoveAll(m.state)); err != nil {
		t.Error(err)
	}
	_ = os.Remove("/run/faasd-sec") // where it is empty
}

// needTools skips where a program is missing, and fails where it must not.
func needTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatalf("needs %s; run scripts/setup.sh", name)
		}
		t.Skipf("needs %s; run scripts/setup.sh", name)
	}
}
