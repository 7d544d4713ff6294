package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

func TestLimitsAreInTheKernelWhenCreateReturns(t *testing.T) {
	b := need(t)
	r := b.open(t)
	spec := b.spec(t, r, b.basic(t, r))
	spec.Resources = api.Resources{CPU: 300, Memory: 40<<20 + 123, PIDs: 50}
	if r.device != (cgroups.Device{}) {
		spec.Resources.ReadBps, spec.Resources.WriteBps = 10<<20, 5<<20
	}
	s, a := b.start(t, r, spec)
	box := s.(*Sandbox)
	if err := errors.Join(box.group.Verify(box.outerLimits()), box.functionGroup().Verify(box.functionLimits())); err != nil {
		t.Error(err)
	}
	// The function's memory is its own, the agent's comes on top.
	if got, want := *box.outerLimits().PIDs, 50+runtime.AgentOverhead().PIDs; got != want {
		t.Errorf("the sandbox may have %d processes, want %d", got, want)
	}
	pid, err := a.Start(false, "/bin/fn", "hog", "20")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AdmitLauncher(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	in, err := box.functionGroup().Contains(cgroups.Memory, pid)
	if err != nil || !in {
		t.Errorf("the launcher is in the function's group: %v, %v", in, err)
	}
	if ans, err := a.Wait(); err != nil || !strings.Contains(ans.Output, "held 20") {
		t.Errorf("a function within its limit: %+v, %v", ans, err)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Memory == 0 || u.CPU == 0 || u.PIDs == 0 || u.MemoryPeak < 20<<20 {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// A limit that this machine cannot hold must end the start, and leave nothing.
func TestALimitTheKernelRefusesEndsTheStart(t *testing.T) {
	b := need(t)
	r := b.open(t)
	img := b.basic(t, r)
	before := take(t, r)
	spec := b.spec(t, r, img)
	spec.Resources.ReadBps = 1 << 20
	r.device = cgroups.Device{Major: 4000, Minor: 17} // no such disk
	if _, err := r.Create(t.Context(), spec); !errors.Is(err, runtime.ErrLimits) {
		t.Errorf("a limit on a disk that is not there: %v, want ErrLimits", err)
	}
	after := take(t, r)
	after.SocketDirs = before.SocketDirs // the caller's
	if after != before {
		t.Errorf("%+v before, %+v after", before, after)
	}
	info, err := os.Stat(spec.SocketDir)
	if err != nil || info.Mode().Perm()&0o700 != 0o700 {
		t.Errorf("the socket directory after a failed start: %v, %v", info, err)
	}
}

func TestWhatCannotBeReachedIsSaid(t *testing.T) {
	b := need(t)
	r := b.open(t)
	img := b.basic(t, r)
	closed := filepath.Join(r.cfg.RunDir, "closed")
	if err := os.MkdirAll(filepath.Join(closed, "s"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	spec := b.spec(t, r, img)
	spec.SocketDir = filepath.Join(closed, "s")
	if _, err := r.Create(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "chmod o+x "+closed) {
		t.Errorf("a socket directory behind a closed one: %v", err)
	}
	cfg := r.cfg
	cfg.RunDir = filepath.Join(closed, "run")
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "chmod o+x "+closed) {
		t.Errorf("a run directory behind a closed one: %v", err)
	}
	cfg = r.cfg
	cfg.UIDCount = 1
	cfg.RunDir += "2"
	small := b.openWith(t, cfg)
	first, err := small.Create(t.Context(), b.spec(t, r, img))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := small.Create(t.Context(), b.spec(t, r, img)); !errors.Is(err, errNoRange) {
		t.Errorf("a second sandbox with one range: %v", err)
	}
	if err := first.Remove(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	// The two share a namespace; only one of them may purge it.
	if err := small.Close(); err != nil {
		t.Fatal(err)
	}
	if err := removeDir(cfg.RunDir); err != nil {
		t.Fatal(err)
	}
}

// The sandbox owns its socket directory, the node looks into it as root.
func TestNoLinkInASocketDirectoryIsFollowed(t *testing.T) {
	b := need(t)
	r := b.open(t)
	spec := b.spec(t, r, b.basic(t, r))
	s, _ := b.start(t, r, spec)
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(spec.SocketDir, "node.sock")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(link, 0o666); !errors.Is(err, unix.ELOOP) {
		t.Errorf("chmod through a link: %v, want ELOOP", err)
	}
	if _, err := os.ReadFile(link); !errors.Is(err, unix.ELOOP) {
		t.Errorf("open through a link: %v, want ELOOP", err)
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(target); err != nil {
		t.Errorf("removal followed the link: %v", err)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	good := Default("/run/containerd/containerd.sock", "faasd-sec", "/run/faasd-sec")
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Config){
		"Address": func(c *Config) { c.Address = "x" }, "Namespace": func(c *Config) { c.Namespace = "a/b" },
		"RunDir": func(c *Config) { c.RunDir = "run" }, "UIDBase": func(c *Config) { c.UIDBase = 1000 },
		"UIDCount": func(c *Config) { c.UIDCount = 1 << 20 }, "CgroupRoot": func(c *Config) { c.CgroupRoot = "/" },
		"MaxCreates": func(c *Config) { c.MaxCreates = 0 }, "timeouts": func(c *Config) { c.CallTimeout = 0 }, "Log": func(c *Config) { c.Log = nil },
	} {
		c := good
		spoil(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
