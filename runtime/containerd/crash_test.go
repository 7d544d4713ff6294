package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// order is what the child of the crash test is told in its environment.
type order struct {
	Address, Namespace, RunDir, Agent, Digest, Tag, Shim string
}

// TestCrashChild is no test: it is the daemon that TestAKilledDaemonLeavesNothing
// kills. It creates and removes sandboxes, four at a time, until then.
func TestCrashChild(t *testing.T) {
	var o order
	if os.Getenv(crashChild) == "" {
		t.Skip("runs only as the child of another test")
	}
	if err := json.Unmarshal([]byte(os.Getenv(crashChild)), &o); err != nil {
		t.Fatal(err)
	}
	cfg := Default(o.Address, o.Namespace, o.RunDir)
	cfg.Shim = o.Shim
	r, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	img, err := r.Pull(t.Context(), "x", o.Digest)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%s-%d-%d", o.Tag, w, i)
				dir := filepath.Join(o.RunDir, "sock", id)
				if err := os.MkdirAll(dir, 0o711); err != nil {
					t.Error(err)
					return
				}
				s, err := r.Create(t.Context(), runtime.Spec{
					ID: id, Function: "f.openfaas-fn", Image: img, AgentPath: o.Agent, SocketDir: dir,
					Resources: api.Resources{CPU: 500, Memory: 32 << 20, PIDs: 32},
				})
				if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 1 { // so that kills meet removals as well
					if err := s.Remove(t.Context(), 0); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// shims reports whether a number of shims is wrong for a number of sandboxes:
// runc has one for each, ours is one for all.
func (b *bench) shims(n, sandboxes int) bool {
	if b.shim != "" {
		sandboxes = min(sandboxes, 1)
	}
	return n != sandboxes
}

// inventory counts everything a sandbox may leave, anywhere.
type inventory struct {
	Tasks, Containers, Snapshots, Leases, Mounts, Cgroups, Shims, Records, SocketDirs int
}

func take(t *testing.T, r *Runtime) inventory {
	t.Helper()
	ctx := t.Context()
	var n inventory
	states, err := r.taskStates(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n.Tasks = len(states)
	list, err := r.client.ContainerService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n.Containers = len(list)
	err = r.client.SnapshotService(r.cfg.Snapshotter).Walk(ctx, func(context.Context, snapshots.Info) error { n.Snapshots++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	ls, err := r.client.LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n.Leases = len(ls)
	mounts, err := mountsBelow(r.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	n.Mounts = len(mounts)
	for _, hierarchy := range []string{"memory", "cpu", "cpuacct", "pids", "blkio", "devices", "freezer", "cpuset", "systemd", "unified", "."} {
		dirs, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", hierarchy, r.cfg.CgroupRoot, r.cfg.Namespace, "*/"))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dirs {
			if info, err := os.Stat(d); err == nil && info.IsDir() {
				n.Cgroups++
			}
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), "containerd-shim") && strings.Contains(string(b), "\x00"+r.cfg.Namespace+"\x00") {
			n.Shims++
		}
	}
	for dir, count := range map[string]*int{"sandboxes": &n.Records, "sock": &n.SocketDirs} {
		entries, err := os.ReadDir(filepath.Join(r.cfg.RunDir, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		*count = len(entries)
	}
	return n
}

func TestAKilledDaemonLeavesNothing(t *testing.T) { eachShim(t, aKilledDaemonLeavesNothing) }

func aKilledDaemonLeavesNothing(t *testing.T, b *bench) {
	cfg := b.config(t)
	r := b.openWith(t, cfg)
	img := b.basic(t, r)
	before := take(t, r)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	adopted := 0
	for round, delay := range []time.Duration{300, 700, 1100} {
		killChild(t, order{cfg.Address, cfg.Namespace, cfg.RunDir, b.agent, img.Digest, fmt.Sprintf("r%d", round), cfg.Shim}, delay*time.Millisecond, round == 2)
		r = b.openWith(t, cfg)
		found, err := r.Recover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		adopted += len(found)
		seen := make(map[uint32]bool)
		for _, s := range found {
			if base := s.(*Sandbox).base; seen[base] {
				t.Errorf("two sandboxes with the user ids from %d on", base)
			} else {
				seen[base] = true
			}
			if _, err := dial(t, s.Info().SocketDir).Do(runtimetest.Command{Do: "ping"}); err != nil {
				t.Errorf("recovered sandbox %s: %v", s.ID(), err)
			}
		}
		if mid := take(t, r); mid.Tasks != len(found) || mid.Containers != len(found) || b.shims(mid.Shims, len(found)) || mid.Mounts != 2*len(found) || mid.Records != len(found) {
			t.Errorf("round %d: %d sandboxes recovered, but there is %+v", round, len(found), mid)
		}
		for _, s := range found {
			if err := s.Remove(t.Context(), 0); err != nil {
				t.Error(err)
			}
		}
		// A socket directory that was made but never given to Create is the
		// caller's to remove.
		var after inventory
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			after = take(t, r)
			after.SocketDirs = 0
			if after == before || time.Now().After(deadline) {
				break
			}
		}
		if after != before {
			t.Errorf("round %d: %+v before, %+v after", round, before, after)
		}
		if round < 2 {
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d sandboxes were adopted", adopted)
	if adopted == 0 {
		t.Error("no round left a running sandbox to adopt")
	}
}

// killChild runs the child and kills it a while after its first sandbox was begun,
// or, with running, after the first that it will not remove has its agent.
func killChild(t *testing.T, o order, delay time.Duration, running bool) {
	t.Helper()
	env, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), crashChild+"="+string(env))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		m, err := filepath.Glob(filepath.Join(o.RunDir, "sandboxes", o.Tag+"-*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(m) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the child creates nothing: %s", out.String())
		}
		time.Sleep(time.Millisecond)
	}
	if running {
		stays := dial(t, filepath.Join(o.RunDir, "sock", o.Tag+"-0-0"))
		if err := stays.Close(); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(delay) // the kill shall come at some moment, whichever
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.String() != "signal: killed" {
		t.Fatalf("the child ended before it was killed: %v\n%s", err, out.String())
	}
}
