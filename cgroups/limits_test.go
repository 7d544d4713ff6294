package cgroups

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

var disk = Device{Major: 254, Minor: 0}

func some(t *testing.T) Limits {
	t.Helper()
	l, err := For(api.Resources{CPU: 250, Memory: 64<<20 + 100, PIDs: 32, ReadBps: 1 << 20}, disk)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayoutsAreRecognized(t *testing.T) {
	v2, _ := unified(t)
	v1, _ := legacy(t)
	if v2.Mode() != V2 || v1.Mode() != V1 {
		t.Errorf("modes %s and %s, want v2 and v1", v2.Mode(), v1.Mode())
	}
	hybrid := at(t, tree(t, map[string]string{
		"cpu/cgroup.procs": "", "memory/cgroup.procs": "", "pids/cgroup.procs": "", "unified/cgroup.procs": "",
	}), "/proc")
	if hybrid.Mode() != Hybrid {
		t.Errorf("mode %s, want hybrid", hybrid.Mode())
	}
	for name, files := range map[string]map[string]string{
		"nothing mounted":       {},
		"v1 without pids":       {"cpu/cgroup.procs": "", "memory/cgroup.procs": ""},
		"v2 without memory":     {"cgroup.controllers": "cpu io pids\n"},
		"v2 with a lookalike":   {"cgroup.controllers": "cpu memory_x pids\n"},
		"a directory, no mount": {"cpu/x": "", "memory/x": "", "pids/x": ""},
	} {
		if _, err := OpenAt(tree(t, files), "/proc"); !errors.Is(err, ErrNoCgroups) {
			t.Errorf("%s: %v, want ErrNoCgroups", name, err)
		}
	}
}

func TestV2Limits(t *testing.T) {
	f, g := unified(t)
	if err := g.Apply(some(t)); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"cpu.max": "25000 100000", "cpu.weight": "10", "memory.max": "67108964", "memory.swap.max": "0",
		"pids.max": "32", "io.max": "254:0 rbps=1048576 wbps=max",
	} {
		if got := content(t, filepath.Join(f.root, "fn", file)); got != want {
			t.Errorf("%s holds %q, want %q", file, got, want)
		}
	}
	// The kernel shows the limit in whole pages, and all four I/O keys.
	kernel := map[string]string{"memory.max": "67108864\n", "io.max": "254:0 rbps=1048576 wbps=max riops=max wiops=max\n"}
	for file, v := range kernel {
		if err := os.WriteFile(filepath.Join(f.root, "fn", file), []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Verify(some(t)); err != nil {
		t.Error(err)
	}
}

func TestV1Limits(t *testing.T) {
	f, g := legacy(t)
	if err := g.Apply(some(t)); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"cpu,cpuacct/fn/cpu.cfs_quota_us": "25000", "cpu,cpuacct/fn/cpu.cfs_period_us": "100000", "cpu,cpuacct/fn/cpu.shares": "256",
		"memory/fn/memory.limit_in_bytes": "67108964", "memory/fn/memory.memsw.limit_in_bytes": "67108964", "memory/fn/memory.swappiness": "0",
		"pids/fn/pids.max": "32", "blkio/fn/" + v1Read: "254:0 1048576",
	} {
		if got := content(t, filepath.Join(f.root, file)); got != want {
			t.Errorf("%s holds %q, want %q", file, got, want)
		}
	}
}

func TestEachDifferenceIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		machine func(*testing.T) (FS, Group)
		file    string
		value   string
	}{
		"v2 quota":       {unified, "fn/cpu.max", "max 100000\n"},
		"v2 weight":      {unified, "fn/cpu.weight", "100\n"},
		"v2 memory":      {unified, "fn/memory.max", "67112960\n"},
		"v2 no memory":   {unified, "fn/memory.max", "max\n"},
		"v2 swap":        {unified, "fn/memory.swap.max", "max\n"},
		"v2 pids":        {unified, "fn/pids.max", "33\n"},
		"v2 io":          {unified, "fn/io.max", "254:0 rbps=1048577 wbps=max\n"},
		"v2 other disk":  {unified, "fn/io.max", "254:1 rbps=1048576 wbps=max\n"},
		"v1 quota":       {legacy, "cpu,cpuacct/fn/cpu.cfs_quota_us", "-1\n"},
		"v1 period":      {legacy, "cpu,cpuacct/fn/cpu.cfs_period_us", "50000\n"},
		"v1 memory":      {legacy, "memory/fn/memory.limit_in_bytes", "67112960\n"},
		"v1 swap":        {legacy, "memory/fn/memory.memsw.limit_in_bytes", "134217728\n"},
		"v1 swappiness":  {legacy, "memory/fn/memory.swappiness", "60\n"},
		"v1 pids":        {legacy, "pids/fn/pids.max", "max\n"},
		"v1 io":          {legacy, "blkio/fn/" + v1Read, ""},
		"v1 io on write": {legacy, "blkio/fn/" + v1Write, "254:0 5\n"},
	} {
		f, g := c.machine(t)
		l := some(t)
		l.Memory.Bytes = 64 << 20 // plain files do not round
		if err := g.Apply(l); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if strings.HasPrefix(name, "v1") { // writes of 0 leave a line in a plain file only
			for _, w := range []string{v1Write} {
				if err := os.WriteFile(filepath.Join(f.root, "blkio/fn", w), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := g.Verify(l); err != nil {
			t.Fatalf("%s: before the change: %v", name, err)
		}
		path := filepath.Join(f.root, c.file)
		if err := os.WriteFile(path, []byte(c.value), 0o644); err != nil {
			t.Fatal(err)
		}
		err := g.Verify(l)
		var m *Mismatch
		if !errors.As(err, &m) || m.File != path {
			t.Errorf("%s: %v, want a mismatch of %s", name, err, path)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		// Only what the kernel may lack without harm may be missing.
		missing := g.Verify(l)
		if harmless := strings.Contains(name, "swap"); (missing == nil) != harmless {
			t.Errorf("%s: with the file missing: %v", name, missing)
		}
	}
}

func TestSwapWithoutAccountingIsAnError(t *testing.T) {
	for _, machine := range []func(*testing.T) (FS, Group){unified, legacy} {
		f, g := machine(t)
		l := Limits{Memory: &MemoryLimit{Bytes: 1 << 20}}
		file := map[Mode]string{V2: "fn/memory.swap.max", V1: "memory/fn/memory.memsw.limit_in_bytes"}[f.Mode()]
		if err := os.Remove(filepath.Join(f.root, file)); err != nil {
			t.Fatal(err)
		}
		if err := g.Apply(l); err != nil {
			t.Errorf("%s: no accounting and no swap: %v", f.Mode(), err)
		}
		if err := os.WriteFile(filepath.Join(f.proc, "swaps"), []byte("Filename\n/dev/sda2 partition 1 0 -2\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := g.Apply(l); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: no accounting, but swap: %v", f.Mode(), err)
		}
	}
}

func TestNilLimitsTouchNothing(t *testing.T) {
	f, g := unified(t)
	if err := errors.Join(g.Apply(Limits{}), g.Verify(Limits{})); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(f.root, "fn/memory.max")); got != "max\n" {
		t.Errorf("memory.max holds %q", got)
	}
}

func TestCPUQuantities(t *testing.T) {
	for milli, want := range map[int64]CPULimit{
		1:    {Quota: time.Millisecond, Period: time.Second, Shares: 2},
		9:    {Quota: 9 * time.Millisecond, Period: time.Second, Shares: 9},
		10:   {Quota: time.Millisecond, Period: 100 * time.Millisecond, Shares: 10},
		500:  {Quota: 50 * time.Millisecond, Period: 100 * time.Millisecond, Shares: 512},
		1000: {Quota: 100 * time.Millisecond, Period: 100 * time.Millisecond, Shares: 1024},
	} {
		got, err := CPUOf(milli)
		if err != nil || *got != want {
			t.Errorf("%dm: %+v, %v; want %+v", milli, got, err, want)
		}
	}
	for _, bad := range []api.Resources{
		{CPU: 0, Memory: 1, PIDs: 1}, {CPU: 1, Memory: 0, PIDs: 1}, {CPU: 1, Memory: 1, PIDs: 0},
		{CPU: -1, Memory: 1, PIDs: 1}, {CPU: 1, Memory: 1, PIDs: 1, ReadBps: -1},
	} {
		if _, err := For(bad, disk); !errors.Is(err, &api.Error{Code: api.CodeInvalid}) {
			t.Errorf("%+v: %v, want invalid", bad, err)
		}
	}
	if _, err := For(api.Resources{CPU: 1, Memory: 1, PIDs: 1, WriteBps: 1}, Device{}); err == nil {
		t.Error("an I/O limit without a device was accepted")
	}
}

func TestCountersAreRead(t *testing.T) {
	for _, machine := range []func(*testing.T) (FS, Group){unified, legacy} {
		f, g := machine(t)
		u, err := g.Usage()
		want := Usage{Memory: 4096000, MemoryPeak: 8192000, CPU: 2500 * time.Millisecond, Throttled: 70 * time.Millisecond, PIDs: 5}
		if err != nil || u != want {
			t.Errorf("%s: usage %+v, %v; want %+v", f.Mode(), u, err, want)
		}
		oom, err := g.OOMKills()
		if err != nil || oom != 1 {
			t.Errorf("%s: OOM kills %d, %v", f.Mode(), oom, err)
		}
		refused, err := g.PIDsRefused()
		if err != nil || refused != 4 {
			t.Errorf("%s: refused forks %d, %v", f.Mode(), refused, err)
		}
	}
}

func TestNonsenseFromTheKernelIsAnError(t *testing.T) {
	f, g := unified(t)
	for file, value := range map[string]string{"memory.current": "lots\n", "cpu.stat": "usage_usec x\n", "pids.current": "\n"} {
		old := content(t, filepath.Join(f.root, "fn", file))
		if err := os.WriteFile(filepath.Join(f.root, "fn", file), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
		if u, err := g.Usage(); err == nil {
			t.Errorf("%s=%q was read as %+v", file, value, u)
		}
		if err := os.WriteFile(filepath.Join(f.root, "fn", file), []byte(old), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(f.root, "fn/memory.events"), []byte("oom 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := g.OOMKills(); err == nil {
		t.Errorf("a counter that is not there was read as %d", n)
	}
}

func TestMembershipIsByPath(t *testing.T) {
	f, g := legacy(t)
	for _, c := range []struct {
		group Group
		ctrl  Controller
		want  bool
	}{
		{g, Memory, true}, {g, PIDs, true}, {g, CPU, false}, {f.Group("/f"), Memory, false}, {g.Child("deeper"), PIDs, true}, {g.Child("deeper"), Memory, false},
	} {
		if in, err := c.group.Contains(c.ctrl, 42); err != nil || in != c.want {
			t.Errorf("%s contains 42 by %s: %v, %v; want %v", c.group.Path(), c.ctrl, in, err, c.want)
		}
	}
	if _, err := g.Contains(BlockIO, 42); err == nil {
		t.Error("a hierarchy that the process is not in was answered")
	}
	if _, err := g.Contains(Memory, 43); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that is gone: %v", err)
	}
}

func TestV2HandsControllersDown(t *testing.T) {
	f, g := unified(t)
	if err := g.Child("fn").Create(Memory, PIDs); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(f.root, "fn/cgroup.subtree_control")); got != "+pids" { // the last write to a plain file
		t.Errorf("delegated %q", got)
	}
	if !g.Child("fn").Exists() {
		t.Error("the group was not made")
	}
	names, err := g.Children()
	if err != nil || len(names) != 1 || names[0] != "fn" {
		t.Errorf("children %v, %v", names, err)
	}
}

func TestTheRootIsNeverRemoved(t *testing.T) {
	f, _ := unified(t)
	if err := f.Group("/x/..").Remove(t.Context()); err == nil {
		t.Error("the root was removed")
	}
}
