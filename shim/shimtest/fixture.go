// Package shimtest makes root file systems and specifications for the tests of
// the shim, with one small program in them.
package shimtest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/faasd-sec/faasd-sec/cgroups"
)

// Inside is the variable that tells the program of a container what to do
// there: "sleep", "exit N", "facts", or "device VERB PATH NUMBER", which makes a
// node (verb "mknod:MODE", octal) or opens it (r, w, rw) and prints the error.
const Inside = "FAASD_SEC_TEST_INSIDE"

// Need ends a test that cannot run here.
func Need(t testing.TB) {
	t.Helper()
	if _, err := cgroups.Open(); os.Getuid() == 0 && err == nil {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("root or cgroups are missing, and REQUIRE_ALL=1")
	}
	t.Skip("needs root and cgroups")
}

// Fixture is a root file system with this test program in it.
type Fixture struct {
	serial atomic.Int64

	Dir    string // passable for all
	Root   string
	Shared string // bound to /shared, and the container's own
}

// New makes a fixture that goes with the test.
func New(t testing.TB) *Fixture {
	t.Helper()
	Need(t)
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
	t.Cleanup(func() {
		if g, err := cgroups.Open(); err == nil {
			g.Group(cgroup()).Prune()
		}
	})
	f := &Fixture{Dir: dir, Root: filepath.Join(dir, "root"), Shared: filepath.Join(dir, "shared")}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"root", "root/proc", "root/dev", "root/tmp", "root/shared", "root/bin", "shared"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(f.Shared, IDBase, IDBase); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(os.Getenv(programs), "inside"))
	if err != nil {
		t.Fatalf("the tests' program: %v; does TestMain call shimtest.Main?", err)
	}
	if err := os.WriteFile(filepath.Join(f.Root, "bin", "init"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	return f
}

// cgroup is above the containers of this process.
func cgroup() string { return fmt.Sprintf("/faasd-sec-test/%d", os.Getpid()) }

// IDBase is the first host id of the containers of these tests.
const IDBase = 1 << 29

func ptr[T any](v T) *T { return &v }

// Spec is what the runtime writes, in short, for a program that is told what
// to do in the variable Inside.
func (f *Fixture) Spec(what string) *specs.Spec {
	caps := []string{"CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: IDBase, Size: 65536}}
	var ns []specs.LinuxNamespace
	for _, k := range []specs.LinuxNamespaceType{"pid", "mount", "network", "ipc", "uts", "user", "cgroup"} {
		ns = append(ns, specs.LinuxNamespace{Type: k})
	}
	return &specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: f.Root, Readonly: true}, Hostname: "sandbox",
		Process: &specs.Process{
			Args: []string{"/bin/init"}, Cwd: "/", Env: []string{Inside + "=" + what},
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			NoNewPrivileges: true, OOMScoreAdj: ptr(500),
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NOFILE", Soft: 500, Hard: 1000}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev", "hidepid=2", "gid=0"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=64"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "noexec", "size=1048576", "mode=1777"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmp", Options: []string{"nosuid", "nodev", "noexec", "size=1048576", "nr_inodes=64", "mode=1777"}},
			{Destination: "/shared", Type: "bind", Source: f.Shared, Options: []string{"bind", "rw", "nosuid", "nodev", "noexec"}},
		},
		Linux: &specs.Linux{
			Namespaces: ns, UIDMappings: ids, GIDMappings: ids,
			CgroupsPath: fmt.Sprintf("%s/c%d", cgroup(), f.serial.Add(1)),
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
			Seccomp:           Profile(),
		},
	}
}

// Profile denies a few calls and allows the rest that Go programs make.
func Profile() *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, Architectures: []specs.Arch{nativeArch()},
		Syscalls: []specs.LinuxSyscall{{Names: goCalls(), Action: specs.ActAllow}},
	}
}

func nativeArch() specs.Arch {
	if runtime.GOARCH == "arm64" {
		return specs.ArchAARCH64
	}
	return specs.ArchX86_64
}

// goCalls are the system calls that the program below may make.
func goCalls() []string {
	return strings.Fields(`read write openat close fstat newfstatat lseek mmap mprotect munmap madvise brk rt_sigaction
rt_sigprocmask rt_sigreturn sigaltstack clone futex sched_yield sched_getaffinity nanosleep clock_nanosleep getpid gettid tgkill
exit exit_group execve arch_prctl set_tid_address set_robust_list rseq prlimit64 getrandom fcntl epoll_create1 epoll_ctl
epoll_pwait eventfd2 pipe2 readlinkat getdents64 uname getuid getgid geteuid getegid getcwd statfs socket ioctl mkdirat
unlinkat prctl clock_gettime`)
}
