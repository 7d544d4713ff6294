package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// The tests run on a machine of their own: TestMain starts this binary again in
// a new network namespace, which is the host of the tests, with new mounts, so
// that nothing they make is the real machine's and all of it ends with them.
const (
	envHost  = "NETWORK_TEST_HOST"
	envCrash = "NETWORK_TEST_CRASH" // a helper that attaches or detaches until it is killed
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envCrash) != "":
		os.Exit(crashing())
	case os.Getenv(envHost) != "":
		if err := becomeHost(); err != nil {
			fmt.Fprintln(os.Stderr, "network: prepare the tests' host:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if why := missing(); why != "" {
		if os.Getenv("REQUIRE_ALL") == "1" {
			fmt.Fprintln(os.Stderr, "network: REQUIRE_ALL=1 and", why)
			os.Exit(1)
		}
		fmt.Println("network: not tested:", why)
		os.Exit(m.Run()) // tests of the kernel skip
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envHost+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread()
	if err := cmd.Run(); err != nil {
		var e *exec.ExitError
		if errors.As(err, &e) && e.ExitCode() > 0 {
			os.Exit(e.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "network:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func missing() string {
	if os.Getuid() != 0 {
		return "this is not root"
	}
	for _, p := range plugins {
		if _, err := os.Stat(filepath.Join(Default("/").PluginDir, p)); err != nil {
			return err.Error()
		}
	}
	for _, p := range []string{"nft", "iptables", "ip", "tc", "nsenter"} {
		if _, err := find(p); err != nil {
			return err.Error()
		}
	}
	return ""
}

// onKernel skips where TestMain found something missing, which it did not allow
// under REQUIRE_ALL=1.
func onKernel(t testing.TB) {
	t.Helper()
	if os.Getenv(envHost) == "" {
		t.Skip("needs root and the CNI plugins")
	}
}

// The world beyond the host: one network with three addresses of one machine,
// which also answers as a metadata service would.
const (
	hostOut   = "198.51.100.1"
	world     = "198.51.100.2"
	unlisted  = "198.51.100.3"
	metadata  = "169.254.169.254"
	alibaba   = "100.100.100.200"
	forbidden = "198.51.100.77" // in Config.Never
)

var theWorld *place

func becomeHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.MkdirAll("/var/lib/cni", 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"/var/lib/cni", "/mnt"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return err
		}
	}
	// Frames between ports of a bridge are not iptables' on most machines.
	if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var err error
	if theWorld, err = newPlace("/mnt/world"); err != nil {
		return err
	}
	for _, c := range []string{
		"link set lo up",
		"link add up0 type veth peer name out0",
		"link set out0 netns /mnt/world",
		"addr add " + hostOut + "/24 dev up0",
		"link set up0 up",
		"route add " + metadata + "/32 via " + world,
		"route add " + alibaba + "/32 via " + world,
		"@ link set lo up",
		"@ addr add " + world + "/24 dev out0",
		"@ addr add " + unlisted + "/24 dev out0",
		"@ addr add " + forbidden + "/24 dev out0",
		"@ addr add " + metadata + "/32 dev lo",
		"@ addr add " + alibaba + "/32 dev lo",
		"@ link set out0 up",
		"@ route add default via " + hostOut,
	} {
		args := append([]string{"ip"}, strings.Fields(c)...)
		if args[1] == "@" {
			args = append([]string{"nsenter", "--net=/mnt/world", "ip"}, args[2:]...)
		}
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", c, err, out)
		}
	}
	return nil
}

// place is a network namespace at a path.
type place struct {
	path string
	ns   *namespace
}

func newPlace(path string) (*place, error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		host, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		if err == nil {
			err = unix.Setns(int(host.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = host.Close()
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &place{path, &namespace{file: f}}, nil
}

func (p *place) end() error {
	return errors.Join(p.ns.close(), unix.Unmount(p.path, unix.MNT_DETACH), os.Remove(p.path))
}

func (p *place) listen(t testing.TB, address string) net.Listener {
	t.Helper()
	var l net.Listener
	err := p.ns.do(func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", address, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serve answers every connection with a greeting, until the test ends.
func (p *place) serve(t testing.TB, address string) {
	t.Helper()
	greet(p.listen(t, address))
}

func greet(l net.Listener) {
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "here")
			c.Close()
		}
	}()
}

func (p *place) dial(address string, patience time.Duration) (c net.Conn, err error) {
	err = p.ns.do(func() error {
		c, err = net.DialTimeout("tcp4", address, patience)
		return err
	})
	return c, err
}

// talks reports whether a connection is answered.
func talks(dial func(string, time.Duration) (net.Conn, error), address string, patience time.Duration) error {
	c, err := dial(address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "here" {
		err = fmt.Errorf("answered %q", b)
	}
	return err
}

func fromHost(address string, patience time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp4", address, patience)
}

const (
	soon = 20 * time.Second       // for what has to work
	wait = 600 * time.Millisecond // for what must not: longer than any of it takes
)

func reaches(t *testing.T, p *place, address string) {
	t.Helper()
	if err := talks(p.dial, address, soon); err != nil {
		t.Errorf("%s is not reached: %v", address, err)
	}
}

func unreachable(t *testing.T, p *place, address string) {
	t.Helper()
	if err := talks(p.dial, address, wait); err == nil {
		t.Errorf("%s is reached", address)
	}
}

// rig is a manager with sandboxes' namespaces.
type rig struct {
	*Manager
	t   testing.TB
	ctx context.Context
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	onKernel(t)
	cfg := Default(filepath.Join(t.TempDir(), "network"))
	cfg.Never = append(cfg.Never, netip.MustParsePrefix(forbidden+"/32"))
	for _, f := range change {
		f(&cfg)
	}
	ctx := context.Background()
	m, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Manager: m, t: t, ctx: ctx}
	t.Cleanup(func() {
		if err := r.Remove(ctx); err != nil {
			t.Errorf("remove: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// reopen is a restart of the daemon, after Close.
func (r *rig) reopen(cfg Config) {
	r.t.Helper()
	m, err := Open(r.ctx, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Manager = m
}

func (r *rig) closed() bool { return r.lock.Fd() == ^uintptr(0) }

func (r *rig) sandbox() *place {
	r.t.Helper()
	p, err := newPlace(filepath.Join("/mnt", strconv.FormatInt(time.Now().UnixNano(), 36)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := p.end(); err != nil {
			r.t.Error(err)
		}
	})
	return p
}

func (r *rig) attach(id string, w Want) (*place, Attachment) {
	r.t.Helper()
	p := r.sandbox()
	a, err := r.Attach(r.ctx, id, p.path, w)
	if err != nil {
		r.t.Fatal(err)
	}
	return p, a
}

func (r *rig) detach(id string) {
	r.t.Helper()
	if err := r.Detach(r.ctx, id); err != nil {
		r.t.Fatal(err)
	}
}

func want(allow ...string) Want {
	w := Want{Ingress: 100e6, Egress: 100e6}
	for _, s := range allow {
		a, err := api.ParseReach("allow", s)
		if err != nil {
			panic(err)
		}
		w.Allow = append(w.Allow, a)
	}
	return w
}

// state is all that an attachment could leave behind: every interface, qdisc
// and filter, every rule of every table, every file.
func (r *rig) state() string {
	r.t.Helper()
	return state(r.t, r.cfg)
}

// warm makes what plugins make once and share, so that states can be compared.
func (r *rig) warm() string {
	r.t.Helper()
	r.attach("warm", Want{Ingress: 1e6, Egress: 1e6, Ports: []Port{{"tcp", 1999, 1}, {"udp", 1999, 1}}})
	r.detach("warm")
	if _, err := r.Recover(r.ctx, nil); err != nil { // tables are listed by age
		r.t.Fatal(err)
	}
	return r.state()
}

var counters = regexp.MustCompile(`counter packets \d+ bytes \d+`)

func state(t testing.TB, cfg Config) string {
	t.Helper()
	var b strings.Builder
	for _, c := range [][]string{
		{"ip", "-br", "link"},
		{"tc", "qdisc"},
		{"nft", "list", "ruleset"},
	} {
		out, err := exec.Command(c[0], c[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if c[0] == "ip" {
			// Names and owners, without flags that follow whether a bridge has ports.
			var names []string
			for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
				names = append(names, strings.Fields(l)[0])
			}
			sort.Strings(names)
			out = []byte(strings.Join(names, "\n"))
		}
		b.Write(bytes.TrimSpace(counters.ReplaceAll(out, []byte("counter"))))
		b.WriteByte('\n')
	}
	for _, dir := range []string{cfg.Dir, "/var/lib/cni"} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				b.WriteString(path + "\n")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// same fails unless two states are, showing what differs.
func same(t testing.TB, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	count := map[string]int{}
	for _, l := range strings.Split(before, "\n") {
		count[l]--
	}
	for _, l := range strings.Split(after, "\n") {
		count[l]++
	}
	for l, n := range count {
		if n != 0 {
			t.Errorf("left behind %+d times: %s", n, l)
		}
	}
	if !t.Failed() {
		t.Errorf("order differs:\n%s\n---\n%s", before, after)
	}
}
