package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a Cluster whose parts are shell scripts.
func bench(t *testing.T) *Cluster {
	t.Helper()
	c := &Cluster{log: slog.New(slog.DiscardHandler), state: t.TempDir(), run: t.TempDir()}
	if err := os.MkdirAll(c.logs(), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

// healthy serves what waitHealthy asks.
func healthy(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return "http://" + ln.Addr().String()
}

func pidOf(t *testing.T, c *Cluster, name string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.run, name+".pid"))
	if err != nil {
		return 0
	}
	text, _, _ := strings.Cut(string(b), " ")
	pid, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func TestPartThatDiesIsStartedAgain(t *testing.T) {
	c := bench(t)
	if err := c.spawn(t.Context(), "part", healthy(t), "/bin/sleep", "60"); err != nil {
		t.Fatal(err)
	}
	first := pidOf(t, c, "part")
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, "another process runs", func() bool { p := pidOf(t, c, "part"); return p != 0 && p != first })
	if b, err := os.ReadFile(filepath.Join(c.logs(), "part.log")); err != nil || !strings.Contains(string(b), "starting it again") {
		t.Errorf("its log: %q %v", b, err)
	}
}

func TestPartThatKeepsDyingEndsTheClusterWithItsLastWords(t *testing.T) {
	c := bench(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.spawn(ctx, "part", healthy(t), "/bin/sh", "-c", "echo it hurts; exit 1"); err != nil {
		t.Fatal(err)
	}
	err := c.Wait(ctx)
	if err == nil || !strings.Contains(err.Error(), "part keeps ending") || !strings.Contains(err.Error(), "it hurts") {
		t.Errorf("got %v", err)
	}
}

func TestPartThatNeverServesIsAnError(t *testing.T) {
	c := bench(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := c.spawn(ctx, "part", "http://127.0.0.1:1/", "/bin/sleep", "60"); err == nil || !strings.Contains(err.Error(), "does not serve") {
		t.Errorf("got %v", err)
	}
	if err := c.spawn(t.Context(), "other", "http://127.0.0.1:1/", "/no/such/program"); err == nil {
		t.Error("a program that is not there was started")
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	c := bench(t)
	trapped := filepath.Join(t.TempDir(), "trapped")
	if err := c.spawn(t.Context(), "deaf", healthy(t), "/bin/sh", "-c", "trap '' TERM; : > "+trapped+"; while :; do sleep 0.1; done"); err != nil {
		t.Fatal(err)
	}
	pid := pidOf(t, c, "deaf")
	wait(t, "its trap is set", func() bool { _, err := os.Stat(trapped); return err == nil })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := c.Stop(ctx); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("got %v", err)
	}
	wait(t, "it is gone", func() bool { return syscall.Kill(pid, 0) != nil })
}

func TestPartsOfAnEarlierRunAreEndedAndOthersLeftAlone(t *testing.T) {
	c := bench(t)
	start := func() *exec.Cmd {
		cmd := exec.Command("/bin/sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	exe, err := filepath.EvalSymlinks("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	old, stranger := start(), start()
	defer func() { stranger.Process.Kill(); stranger.Wait() }()
	write := func(name string, pid int, path string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(c.run, name+".pid"), fmt.Appendf(nil, "%d %s\n", pid, path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("node-1", old.Process.Pid, exe)
	write("node-2", stranger.Process.Pid, "/usr/bin/node") // its pid belongs to somebody else now
	write("node-3", 0, exe)
	ended := make(chan struct{})
	go func() { defer close(ended); old.Wait() }()
	if err := c.stopStale(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := syscall.Kill(stranger.Process.Pid, 0); err != nil {
		t.Errorf("a stranger's process was ended: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	bin := t.TempDir()
	for _, b := range []string{"coordinator", "keybroker", "manifest-opener", "node", "agent"} {
		if err := os.WriteFile(filepath.Join(bin, b), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	good := Config{Nodes: 1, Listen: "127.0.0.1:0", Bin: bin}
	if err := (&Cluster{cfg: good}).check(); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Config){
		"no node":       func(c *Config) { c.Nodes = 0 },
		"too many":      func(c *Config) { c.Nodes = 65 },
		"no host":       func(c *Config) { c.Listen = ":8080" },
		"no port":       func(c *Config) { c.Listen = "127.0.0.1" },
		"no binaries":   func(c *Config) { c.Bin = t.TempDir() },
		"bin not there": func(c *Config) { c.Bin = "/nowhere" },
		"cpu":           func(c *Config) { c.CPU = "two" },
		"memory":        func(c *Config) { c.Memory = "3Q" },
		"idle after":    func(c *Config) { c.IdleAfter = -time.Second },
		"no containerd": func(c *Config) { c.Containerd = "/nowhere" },
		"no socket":     func(c *Config) { c.Containerd = bin },
	} {
		cfg := good
		change(&cfg)
		err := (&Cluster{cfg: cfg}).check()
		if code := api.CodeOf(err); code != api.CodeInvalid && code != api.CodeNotFound {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A second cluster on the same state would take the first one's parts for those of
// a run that was killed.
func TestStateOfAClusterThatRunsIsLeftAlone(t *testing.T) {
	first := bench(t)
	if err := first.lockState(); err != nil {
		t.Fatal(err)
	}
	second := &Cluster{cfg: Config{State: first.state, Listen: "127.0.0.1:0"}, log: first.log}
	if err := second.prepare(t.Context()); api.CodeOf(err) != api.CodeConflict || second.run != "" {
		t.Fatalf("prepared %q: %v", second.run, err)
	}
	if err := errors.Join(second.Stop(t.Context()), first.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := second.lockState(); err != nil {
		t.Errorf("after the first one stopped: %v", err)
	}
	if err := second.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// So many draws that a port given twice is likely to show, were it possible.
func TestNoTwoPartsGetOnePort(t *testing.T) {
	for range 200 {
		c := &Cluster{cfg: Config{Listen: "127.0.0.1:0", Coordinators: 3}, state: t.TempDir()}
		if err := c.choosePorts(); err != nil {
			t.Fatal(err)
		}
		again := &Cluster{cfg: c.cfg, state: c.state} // whose stores have kept theirs
		if err := again.choosePorts(); err != nil {
			t.Fatal(err)
		}
		if again.ports.peer != c.ports.peer {
			t.Fatalf("the first store moved from %s to %s", c.ports.peer, again.ports.peer)
		}
		for _, c := range []*Cluster{c, again} {
			p := c.ports
			all := []string{p.gateway, p.cluster, p.gossip, p.ops, p.broker, p.brokerOps, p.peer}
			for _, o := range c.others {
				all = append(all, o.gateway, o.cluster, o.gossip, o.ops, o.peer)
			}
			seen := map[string]bool{}
			for _, addr := range all {
				if addr == "" || seen[addr] {
					t.Fatalf("%q is there twice: %q", addr, all)
				}
				seen[addr] = true
			}
		}
	}
}

func TestStateOfThreeCoordinatorsIsNotThatOfAnotherNumber(t *testing.T) {
	c := &Cluster{cfg: Config{Listen: "127.0.0.1:0", Coordinators: 3}, state: t.TempDir()}
	if err := c.choosePorts(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 5} {
		again := &Cluster{cfg: Config{Listen: "127.0.0.1:0", Coordinators: n}, state: c.state}
		if err := again.choosePorts(); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("%d: %v", n, err)
		}
	}
}

func TestGatewayDoesNotTakeAStoresPort(t *testing.T) {
	c := &Cluster{cfg: Config{Listen: "127.0.0.1:0", Coordinators: 3}, state: t.TempDir()}
	if err := c.choosePorts(); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(c.ports.peer)
	if err != nil {
		t.Fatal(err)
	}
	again := &Cluster{cfg: Config{Listen: "0.0.0.0:" + port, Coordinators: 3}, state: c.state}
	if err := again.choosePorts(); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("got %v", err)
	}
}
