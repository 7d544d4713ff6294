package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestLifecycle starts, stops, kills and replaces what a cluster consists of,
// and counts afterwards what is left of it: nothing may leak, whatever ended.
func TestLifecycle(t *testing.T) {
	var run, state string
	t.Run("cluster", func(t *testing.T) {
		// A pool of one size, so that what belongs to it can be counted.
		c := up(t, 1, func(cfg *local.Config) { cfg.NodeArgs = []string{"-pool-min", "2", "-pool-max", "2"} })
		run, state = c.runDir(), c.State()
		fn := c.deploy(t, "steady", func(d *client.Deployment) { d.Idle = time.Second })
		t.Run("scale to zero and back", func(t *testing.T) { scaleToZero(t, c, fn) })
		eventually(t, "the pool is full", func() bool { return c.metric(t, "node-1", "faasd_sec_node_pool_depth") == 2 })
		before := takeStock(t, run, state)
		for _, sub := range []struct {
			name string
			test func(*testing.T, *cluster)
		}{
			{"node daemon killed", nodeKilled},
			{"coordinator killed", coordinatorKilled},
			{"node daemon told to stop", nodeDrains},
			{"update under load", updateUnderLoad},
			{"key rotation", keyRotation},
			{"removal", removal},
			{"removal while it starts", removalWhileStarting},
		} {
			t.Run(sub.name, func(t *testing.T) { sub.test(t, c) })
		}
		c.must(t, fn, "/", "")
		list, err := c.client.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			if f.Name != fn {
				if err := c.client.Remove(t.Context(), f.Name); err != nil {
					t.Error(err)
				}
			}
		}
		var after stock
		eventually(t, "everything that idle functions had is gone", func() bool {
			after = takeStock(t, run, state)
			return c.metric(t, "node-1", "faasd_sec_node_sandboxes") == 0 && after.same(before)
		}, func() string { return fmt.Sprintf("before %v\nafter  %v", before, after) })
	})
	left := takeStock(t, run, state)
	if n := left.total(); n != 0 {
		t.Errorf("after the cluster stopped this is left: %v", left)
	}
	if _, err := os.Stat(run); err == nil {
		t.Errorf("%s is left", run)
	}
}

func scaleToZero(t *testing.T, c *cluster, fn api.FunctionName) {
	for range 2 {
		resp, _, err := c.invoke(t, fn, client.Request{})
		if err != nil || !fresh(resp.Meta.Start) {
			t.Fatalf("%+v, %v, want a cold start", resp, err)
		}
		eventually(t, "no sandbox is left", func() bool { return c.metric(t, "node-1", "faasd_sec_node_sandboxes") == 0 })
	}
}

func nodeKilled(t *testing.T, c *cluster) {
	fn := c.deploy(t, "survivor")
	c.must(t, fn, "/", "")
	was := c.sandbox(t, fn)
	c.kill(t, "node-1", syscall.SIGKILL)
	c.served(t, "node-1")
	resp, body, err := c.invoke(t, fn, client.Request{Body: strings.NewReader("hello again")})
	if err != nil || string(body) != "hello again" || resp.Meta.Start != "warm" {
		t.Fatalf("after the restart: %+v, %q, %v", resp, body, err)
	}
	if now := c.sandbox(t, fn); now.ID != was.ID {
		t.Errorf("sandbox %s serves, %s was running", now.ID, was.ID)
	}
	if u := c.sandbox(t, fn); u.CPUMicros == 0 || u.Memory == 0 {
		t.Errorf("the adopted sandbox is not measured: %+v", u)
	}
	// Its limits still hold, and its end is still noticed.
	resp, _, err = c.invoke(t, fn, client.Request{Path: "/oom"})
	if err != nil || resp.Failure() != api.CodeOOMKilled {
		t.Errorf("adopted and over its memory: %+v, %v", resp, err)
	}
	c.ends(t, fn, "oom_killed")
}

func coordinatorKilled(t *testing.T, c *cluster) {
	fn := c.deploy(t, "remembered")
	c.must(t, fn, "/", "")
	before, err := c.client.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.kill(t, "coordinator", syscall.SIGKILL)
	c.served(t, "coordinator")
	after, err := c.client.List(t.Context())
	if err != nil || len(after) != len(before) {
		t.Fatalf("%d functions, %d before, %v", len(after), len(before), err)
	}
	eventually(t, "calls work again", func() bool {
		_, body, err := c.invoke(t, fn, client.Request{Body: strings.NewReader("x")})
		return err == nil && string(body) == "x"
	})
	c.deploy(t, "remembered", func(d *client.Deployment) { d.Exec = 7 * time.Second })
	c.must(t, fn, "/", "")
}

// nodeDrains stops the daemon in the middle of an invocation.
func nodeDrains(t *testing.T, c *cluster) {
	fn := c.deploy(t, "patient")
	c.must(t, fn, "/", "")
	done := make(chan error, 1)
	go func() {
		_, body, err := c.invoke(t, fn, client.Request{Path: "/sleep", Query: "ms=1500"})
		if err == nil && string(body) != "slept" {
			err = fmt.Errorf("body %q", body)
		}
		done <- err
	}()
	eventually(t, "it is under way", func() bool { return c.sandbox(t, fn).InFlight == 1 })
	c.kill(t, "node-1", syscall.SIGTERM)
	if err := <-done; err != nil {
		t.Errorf("the invocation under way: %v", err)
	}
	c.served(t, "node-1")
	resp, _, err := c.invoke(t, fn, client.Request{})
	if err != nil || !fresh(resp.Meta.Start) {
		t.Errorf("after the drain: %+v, %v", resp, err)
	}
}

func updateUnderLoad(t *testing.T, c *cluster) {
	fn := c.deploy(t, "updated")
	c.must(t, fn, "/", "")
	stop := make(chan struct{})
	var calls, failed atomic.Int64
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				want := fmt.Sprintf("%d-%d", w, i)
				path, query := "/", ""
				if i%10 == 0 {
					path, query, want = "/sleep", "ms=200", "slept"
				}
				_, body, err := c.invoke(t, fn, client.Request{Path: path, Query: query, Body: strings.NewReader(want)})
				if calls.Add(1); err != nil || string(body) != want {
					failed.Add(1)
					t.Errorf("call %s: %q, %v", want, body, err)
				}
			}
		}()
	}
	for i := range 2 {
		c.deploy(t, "updated", func(d *client.Deployment) { d.Exec = time.Duration(10+i) * time.Second })
		time.Sleep(700 * time.Millisecond) // of load on each revision
	}
	c.deploy(t, "updated", func(d *client.Deployment) { d.Exec, d.Rotate = 11*time.Second, true })
	time.Sleep(700 * time.Millisecond)
	close(stop)
	wg.Wait()
	t.Logf("%d calls during three updates, %d failed", calls.Load(), failed.Load())
	st, err := c.client.Describe(t.Context(), fn)
	if err != nil {
		t.Fatal(err)
	}
	// Callers may have been with the revision before, which drains for some seconds.
	within(t, 20*time.Second, "only the current revision runs", func() bool {
		c.must(t, fn, "/", "x")
		ready := 0
		for _, s := range c.sandboxes(t, fn) {
			if s.State != "dead" {
				ready++
				if s.Revision != st.Revision {
					return false
				}
			}
		}
		return ready == 1
	})
}

func keyRotation(t *testing.T, c *cluster) {
	fn := c.deploy(t, "rotated")
	c.must(t, fn, "/", "")
	old, err := client.New(client.Config{Gateway: c.Gateway(), Identity: c.id, Pins: c.pins})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	ask := func(cl *client.Client, when string) {
		t.Helper()
		resp, err := cl.Invoke(t.Context(), fn, client.Request{Body: strings.NewReader("x")})
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		resp.Body.Close()
	}
	ask(old, "before")
	for i := range 2 {
		c.deploy(t, "rotated", func(d *client.Deployment) { d.Rotate = true })
		ask(c.client, fmt.Sprintf("rotation %d, current descriptor", i))
		ask(old, fmt.Sprintf("rotation %d, descriptor of before", i))
	}
}

func removal(t *testing.T, c *cluster) {
	fn := c.deploy(t, "removed")
	c.must(t, fn, "/", "")
	msg := c.message(t, fn, "late")
	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	if status, p := c.post(t, fn, msg); status != 404 || p.Code != api.CodeNotFound {
		t.Errorf("after its removal: %d %+v", status, p)
	}
	if err := c.client.Remove(t.Context(), fn); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("removed twice: %v", err)
	}
	c.deploy(t, "removed")
	if got := c.must(t, fn, "/", "back"); got != "back" {
		t.Errorf("deployed again it answers %q", got)
	}
}

// removalWhileStarting removes functions in the middle of their cold start: the
// sandbox that is being made must go too.
func removalWhileStarting(t *testing.T, c *cluster) {
	for i := range 6 {
		fn := c.deploy(t, fmt.Sprintf("hasty-%d", i))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _ = c.invoke(t, fn, client.Request{}) // either answer will do
		}()
		time.Sleep(time.Duration(20+25*i) * time.Millisecond) // another point of the start each time
		if err := c.client.Remove(t.Context(), fn); err != nil {
			t.Error(err)
		}
		<-done
	}
}

// kill signals a part and waits until that process has ended.
func (c *cluster) kill(t testing.TB, name string, sig syscall.Signal) {
	t.Helper()
	p := c.part(t, name)
	if err := syscall.Kill(p.pid, sig); err != nil {
		t.Fatal(err)
	}
	eventually(t, name+" has ended", func() bool {
		b, err := os.ReadFile(filepath.Join(c.runDir(), name+".pid"))
		return err != nil || !strings.HasPrefix(string(b), strconv.Itoa(p.pid)+" ")
	})
}

// served waits until a part that local started again serves, and the
// coordinator sees the node.
func (c *cluster) served(t testing.TB, name string) {
	t.Helper()
	began := time.Now()
	p := c.part(t, name)
	// A coordinator that is back calls on the members it had written down.
	within(t, 20*time.Second, name+" serves again", func() bool {
		resp, err := quick.Get("http://" + p.flag("ops-listen") + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return false
		}
		nodes, err := c.client.Nodes(t.Context())
		for _, n := range nodes {
			// Of this life, not the one before.
			if n.Meta.ID == "node-1" && !n.Load.Draining && (name != "node-1" || n.Load.Epoch >= uint64(began.Add(-5*time.Second).UnixMilli())) {
				return err == nil && n.Load.Epoch != 0
			}
		}
		return false
	})
	t.Logf("%s served again %v after its process had ended", name, time.Since(began))
}

// stock is what there is of a cluster, by kind.
type stock map[string][]string

func (s stock) total() (n int) {
	for _, v := range s {
		n += len(v)
	}
	return n
}

// same compares amounts: names differ from one sandbox to the next.
func (s stock) same(o stock) bool {
	for _, k := range []string{"containers", "tasks", "leases", "snapshots", "mounts", "cgroups", "sandbox directories", "processes"} {
		if len(s[k]) != len(o[k]) {
			return false
		}
	}
	return true
}

func (s stock) String() string {
	var b strings.Builder
	var kinds []string
	for k := range s {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	for _, k := range kinds {
		fmt.Fprintf(&b, "%s: %d %.300q; ", k, len(s[k]), s[k])
	}
	return b.String()
}

// takeStock looks for everything that names the cluster's directories.
func takeStock(t testing.TB, run, state string) stock {
	t.Helper()
	s := stock{}
	base := filepath.Base(run)
	mine := func(text string) bool {
		return strings.Contains(text, run) || strings.Contains(text, state) || strings.Contains(text, base)
	}
	if _, err := os.Stat(filepath.Join(run, "containerd.sock")); err == nil {
		for kind, args := range map[string][]string{
			"containers": {"containers", "ls", "-q"}, "tasks": {"tasks", "ls", "-q"}, "leases": {"leases", "ls", "-q"}, "snapshots": {"snapshots", "ls"},
		} {
			out, err := exec.Command("ctr", append([]string{"-a", filepath.Join(run, "containerd.sock"), "-n", base + "-n1"}, args...)...).Output()
			if err != nil {
				t.Fatalf("ctr %v: %v", args, err)
			}
			s[kind] = strings.FieldsFunc(strings.TrimSpace(string(out)), func(r rune) bool { return r == '\n' })
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if mine(line) {
			s["mounts"] = append(s["mounts"], strings.Fields(line)[4])
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, base) {
			s["cgroups"] = append(s["cgroups"], path)
		}
		return nil // groups come and go while we look
	})
	if err != nil {
		t.Fatal(err)
	}
	if s["sandbox directories"], err = filepath.Glob(filepath.Join(run, "n1", "s", "*")); err != nil {
		t.Fatal(err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && mine(string(b)) && !strings.HasPrefix(string(b), "ctr") {
			s["processes"] = append(s["processes"], strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(sockets)) {
		if mine(line) {
			s["sockets"] = append(s["sockets"], strings.TrimSpace(line))
		}
	}
	return s
}

// part is one running process of a cluster.
type part struct {
	pid  int
	args []string
}

// part finds a process by what local calls it: "coordinator", "node-1", …
func (c *cluster) part(t testing.TB, name string) part {
	t.Helper()
	var p part
	eventually(t, name+" runs", func() bool {
		b, err := os.ReadFile(filepath.Join(c.runDir(), name+".pid"))
		if err != nil {
			return false
		}
		text, _, _ := strings.Cut(string(b), " ")
		if p.pid, err = strconv.Atoi(text); err != nil {
			return false
		}
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
		p.args = strings.Split(string(cmd), "\x00")
		return err == nil && len(p.args) > 1
	})
	return p
}

// runDir is where a local cluster keeps its sockets and pids.
func (c *cluster) runDir() string {
	sum := sha256.Sum256([]byte(c.State()))
	return filepath.Join("/run/faasd-sec", hex.EncodeToString(sum[:4]))
}

// flag is the value of a flag that the process was started with.
func (p part) flag(name string) string {
	for i, a := range p.args {
		if strings.TrimLeft(a, "-") == name && i+1 < len(p.args) {
			return p.args[i+1]
		}
	}
	return ""
}
