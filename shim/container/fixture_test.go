package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// insideVariable says to the test program that it is the program of a
// container, and what it is to do there.
const insideVariable = "FAASD_SEC_TEST_INSIDE"

func TestMain(m *testing.M) {
	if what := os.Getenv(insideVariable); what != "" {
		os.Exit(inside(what))
	}
	os.Exit(m.Run())
}

// needRoot ends a test that cannot run here.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		if _, err := GroupsAt("/x"); err == nil {
			return
		} else if !errors.Is(err, ErrNoV2) {
			t.Fatal(err)
		}
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("root or cgroup v1 is missing, and REQUIRE_ALL=1")
	}
	t.Skip("needs root and cgroup v1")
}

// fixture is a root file system with this test program in it.
type fixture struct {
	dir    string // passable for all
	root   string
	shared string // bound to /shared
}

var serial atomic.Int64

func newFixture(t testing.TB) *fixture {
	t.Helper()
	needRoot(t)
	// Not t.TempDir, whose parents others cannot pass.
	dir, err := os.MkdirTemp("", "fsshim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	f := &fixture{dir: dir, root: filepath.Join(dir, "root"), shared: filepath.Join(dir, "shared")}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"root", "root/proc", "root/dev", "root/tmp", "root/shared", "root/bin", "shared"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(f.shared, idBase, idBase); err != nil {
		t.Fatal(err)
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	out, err := os.OpenFile(filepath.Join(f.root, "bin", "init"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, self); err != nil {
		t.Fatal(err)
	}
	return f
}

// idBase is the first host id of the containers of these tests.
const idBase = 1 << 29

func ptr[T any](v T) *T { return &v }

// spec is what the runtime writes, in short, for a program that does what.
func (f *fixture) spec(what string) *specs.Spec {
	caps := []string{"CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: idBase, Size: 65536}}
	var ns []specs.LinuxNamespace
	for _, k := range []specs.LinuxNamespaceType{"pid", "mount", "network", "ipc", "uts", "user", "cgroup"} {
		ns = append(ns, specs.LinuxNamespace{Type: k})
	}
	return &specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: f.root, Readonly: true}, Hostname: "sandbox",
		Process: &specs.Process{
			Args: []string{"/bin/init"}, Cwd: "/", Env: []string{insideVariable + "=" + what},
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			NoNewPrivileges: true, OOMScoreAdj: ptr(500),
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NOFILE", Soft: 500, Hard: 1000}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev", "hidepid=2", "gid=0"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=64"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "noexec", "size=1048576", "mode=1777"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmp", Options: []string{"nosuid", "nodev", "noexec", "size=1048576", "nr_inodes=64", "mode=1777"}},
			{Destination: "/shared", Type: "bind", Source: f.shared, Options: []string{"bind", "rw", "nosuid", "nodev", "noexec"}},
		},
		Linux: &specs.Linux{
			Namespaces: ns, UIDMappings: ids, GIDMappings: ids,
			CgroupsPath: fmt.Sprintf("/faasd-sec-test/%d/c%d", os.Getpid(), serial.Add(1)),
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
				Memory:  &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20)), Swappiness: ptr(uint64(0))},
				CPU:     &specs.LinuxCPU{Quota: ptr(int64(100000)), Period: ptr(uint64(100000)), Shares: ptr(uint64(1024))},
				Pids:    &specs.LinuxPids{Limit: ptr(int64(64))},
			},
			Sysctl:            map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
			RootfsPropagation: "rprivate",
			MaskedPaths:       []string{"/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/pressure", "/proc/not-there", "/sys"},
			ReadonlyPaths:     []string{"/proc/bus", "/proc/sys", "/proc/not-there"},
			Seccomp:           profile(),
		},
	}
}

// profile denies a few calls and allows the rest that Go programs make.
func profile() *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, Architectures: []specs.Arch{nativeArch()},
		Syscalls: []specs.LinuxSyscall{{Names: goCalls(), Action: specs.ActAllow}},
	}
}

func parse(t testing.TB, s *specs.Spec) (*specs.Spec, error) {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return Parse(b)
}

func plan(t testing.TB, s *specs.Spec) *Plan {
	t.Helper()
	s, err := parse(t, s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// end kills a container and removes it.
func end(t testing.TB, c *Container) uint32 {
	t.Helper()
	if err := c.Signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrExited) {
		t.Error(err)
	}
	code, err := c.Wait()
	if err != nil {
		t.Error(err)
	}
	if err := errors.Join(c.Groups.Remove(deadline(t)), c.Close()); err != nil {
		t.Error(err)
	}
	c.Groups.group.Prune()
	return code
}
