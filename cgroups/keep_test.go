package cgroups

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// descriptors counts this process's descriptors.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// keep is Keep until the end of the test.
func keep(t *testing.T, g Group, controllers ...Controller) Group {
	t.Helper()
	k, err := g.Keep(controllers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Release)
	return k
}

func TestKeptFilesLimitAsPathsDo(t *testing.T) {
	_, g := kernel(t)
	before := descriptors(t)
	k := keep(t, g, CPU, Memory, PIDs, Freezer)
	if descriptors(t) == before {
		t.Error("no file is kept open")
	}
	for _, r := range []api.Resources{
		{CPU: 250, Memory: 33<<20 + 17, PIDs: 40}, {CPU: 2000, Memory: 64 << 20, PIDs: 400}, {CPU: 2000, Memory: 16 << 20, PIDs: 4},
		{CPU: 5, Memory: 16 << 20, PIDs: 12345}, // another period
	} {
		l, err := For(r, Device{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(k.Apply(l), k.Verify(l), g.Verify(l)); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
		other := Limits{PIDs: new(int64)}
		*other.PIDs = r.PIDs + 1
		if err := g.Apply(other); err != nil {
			t.Fatal(err)
		}
		var m *Mismatch
		if err := k.Verify(l); !errors.As(err, &m) || m.File != g.file(PIDs, "pids.max") {
			t.Errorf("another limit than was written: %v", err)
		}
	}
	bad := int64(-1)
	if err := k.write(PIDs, "pids.max", "few"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a value that the kernel refuses: %v", err)
	}
	if err := k.Apply(Limits{PIDs: &bad}); err == nil {
		t.Error("a pids limit of -1 was written")
	}
	k.Release()
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors before, %d after", before, n)
	}
	l := Limits{Memory: &MemoryLimit{Bytes: 48 << 20}}
	if err := errors.Join(k.Apply(l), g.Verify(l)); err != nil {
		t.Errorf("after the release: %v", err)
	}
}

func TestKeptFilesOfAGoneGroupFail(t *testing.T) {
	_, g := kernel(t)
	k := keep(t, g, CPU, Memory, PIDs, Freezer)
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := int64(9)
	gone := func(err error) bool { return errors.Is(err, syscall.ENODEV) || errors.Is(err, fs.ErrNotExist) }
	if err := k.Apply(Limits{PIDs: &n}); !gone(err) {
		t.Errorf("apply: %v", err)
	}
	if err := k.Verify(Limits{PIDs: &n}); !gone(err) {
		t.Errorf("verify: %v", err)
	}
	if err := k.Freeze(t.Context()); !gone(err) {
		t.Errorf("freeze: %v", err)
	}
}

func TestKeptFilesOfV2(t *testing.T) {
	f, g := unified(t)
	file := func(name string) string { return filepath.Join(f.root, "fn", name) }
	// The kernel replaces what a file holds. A plain file does where it was empty.
	for _, name := range []string{"cpu.max", "cpu.weight", "memory.max", "memory.swap.max", "pids.max"} {
		if err := os.Truncate(file(name), 0); err != nil {
			t.Fatal(err)
		}
	}
	k := keep(t, g, CPU, Memory, PIDs, Freezer)
	l := some(t)
	l.Memory.Bytes = 64 << 20 // plain files do not round
	if err := errors.Join(k.Apply(l), k.Verify(l), g.Verify(l)); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"cpu.max": "max 100000\n", "cpu.weight": "100\n", "memory.max": "max\n", "memory.swap.max": "max\n", "pids.max": "33\n"} {
		old := content(t, file(name))
		if err := os.WriteFile(file(name), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
		var m *Mismatch
		if err := k.Verify(l); !errors.As(err, &m) || m.File != file(name) {
			t.Errorf("%s: %v, want a mismatch", name, err)
		}
		if err := os.WriteFile(file(name), []byte(old), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if frozen, err := k.Frozen(); err != nil || frozen {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	if err := os.WriteFile(file("cgroup.events"), []byte("populated 1\nfrozen 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := k.Freeze(t.Context()); err != nil || content(t, file("cgroup.freeze")) != "1\n" {
		t.Errorf("freeze: %v, the file holds %q", err, content(t, file("cgroup.freeze")))
	}
}

func TestAKeptFileThatIsMissingIsReported(t *testing.T) {
	for _, machine := range []func(*testing.T) (FS, Group){unified, legacy} {
		f, g := machine(t)
		if err := os.Remove(g.file(PIDs, "pids.max")); err != nil {
			t.Fatal(err)
		}
		k := keep(t, g, CPU, Memory, PIDs)
		n := int64(3)
		if err := k.Apply(Limits{PIDs: &n}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: apply: %v", f.Mode(), err)
		}
		if err := k.Verify(Limits{PIDs: &n}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: verify: %v", f.Mode(), err)
		}
	}
}

// A hybrid machine has both freezers.
func TestKeptFreezersFreeze(t *testing.T) {
	v, g := kernel(t)
	groups := map[Mode]Group{v.Mode(): g}
	if v.Mode() == Hybrid { // v2 freezes without any controller
		u := FS{root: v.dirs[Unified], proc: v.proc, mode: V2}.Group(g.path)
		if err := u.Create(); err != nil {
			t.Fatal(err)
		}
		groups[V2] = u
	}
	for mode, g := range groups {
		_, cmd := limited(t, v.Group(g.path), "sleep")
		if mode == V2 {
			if err := g.Add(cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
		}
		k := keep(t, g, Freezer)
		for range 3 {
			if err := k.Freeze(t.Context()); err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
			if f, err := g.Frozen(); err != nil || !f {
				t.Errorf("%s: frozen: %v, %v", mode, f, err)
			}
			if err := k.Thaw(t.Context()); err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
			if f, err := g.Frozen(); err != nil || f {
				t.Errorf("%s: frozen after a thaw: %v, %v", mode, f, err)
			}
		}
		k.Release()
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		eventually(t, "the end of the process", func() bool {
			in, err := g.Processes()
			_ = cmd.Wait()
			return err == nil && len(in) == 0
		})
	}
}

func BenchmarkLimits(b *testing.B) {
	f, err := Open()
	if err != nil || os.Getuid() != 0 {
		b.Skip("cannot make cgroups")
	}
	g := f.Group("/faasd-sec-bench-" + time.Now().Format("150405.000"))
	if err := g.Create(CPU, CPUAcct, Memory, PIDs, Freezer); err != nil {
		b.Skip(err)
	}
	defer g.Remove(b.Context())
	k, err := g.Keep(CPU, Memory, PIDs)
	if err != nil {
		b.Fatal(err)
	}
	defer k.Release()
	var l [2]Limits
	for i, r := range []api.Resources{{CPU: 1000, Memory: 32 << 20, PIDs: 16}, {CPU: 2000, Memory: 64 << 20, PIDs: 64}} {
		if l[i], err = For(r, Device{}); err != nil {
			b.Fatal(err)
		}
	}
	for name, g := range map[string]Group{"by path": g, "kept": k} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := errors.Join(g.Apply(l[i%2]), g.Verify(l[i%2])); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
