package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/shim/shimtest"
	"github.com/faasd-sec/faasd-sec/shim/stage"
)

func create(t testing.TB, s *specs.Spec) *Container {
	t.Helper()
	c, err := Create(deadline(t), plan(t, s))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// look runs a container that gathers facts, and gives them.
func look(t *testing.T, f *shimtest.Fixture, s *specs.Spec) shimtest.Facts {
	t.Helper()
	c := create(t, s)
	if err := c.Start(deadline(t)); err != nil {
		end(t, c)
		t.Fatal(err)
	}
	code, err := c.Wait()
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v", code, err)
	}
	if err := errors.Join(c.Groups.Remove(deadline(t)), c.Close()); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(f.Shared, "facts.new"))
	if err != nil {
		t.Fatal(err)
	}
	var got shimtest.Facts
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestAContainerIsWhatItsSpecificationSays(t *testing.T) {
	f := shimtest.New(t)
	got := look(t, f, f.Spec("facts"))
	if got.PID != 1 || got.UID != 0 || got.GID != 0 || got.Hostname != "sandbox" {
		t.Errorf("pid %d, ids %d:%d, host name %q", got.PID, got.UID, got.GID, got.Hostname)
	}
	if got.Descriptors != 3 {
		t.Errorf("%d descriptors, want the three streams", got.Descriptors)
	}
	for path, want := range map[string]bool{
		"/tmp/x": true, "/dev/shm/x": true, "/shared/x": true, "/dev/null": true,
		"/x": false, "/bin/x": false, "/proc/sys/net/ipv4/ip_forward": false,
	} {
		if got.Writable[path] != want {
			t.Errorf("%s can be written: %v, want %v", path, got.Writable[path], want)
		}
	}
	for path, want := range map[string]bool{
		"/dev/zero": true, "/dev/urandom": true, "/dev/fd": true, "/proc/1": true,
		"/dev/kmsg": false, "/etc": false, "/root": false, "/proc/acpi/x": false,
	} {
		if got.Exists[path] != want {
			t.Errorf("%s exists: %v, want %v", path, got.Exists[path], want)
		}
	}
	for file, want := range map[string]string{
		"/proc/self/status":                             "CapEff:\t00000000000001e0\nCapBnd:\t00000000000001e0\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
		"/proc/self/uid_map":                            "         0  536870912      65536\n",
		"/proc/self/oom_score_adj":                      "500\n",
		"/proc/sys/net/ipv4/ip_unprivileged_port_start": "0\n",
		"/proc/self/cgroup":                             ":/\n",
		"/proc/net/dev":                                 "lo:",
	} {
		if !strings.Contains(got.Files[file], want) {
			t.Errorf("%s is %q, want %q in it", file, got.Files[file], want)
		}
	}
	limits := strings.Join(strings.Fields(got.Files["/proc/self/limits"]), " ")
	for _, want := range []string{"Max core file size 0 0 bytes", " 1000 files"} { // Go raises the soft limit itself
		if !strings.Contains(limits, want) {
			t.Errorf("limits %q, want %q", limits, want)
		}
	}
	if strings.TrimSpace(got.Files["/proc/keys"]) != "" {
		t.Errorf("a masked file gives %q", got.Files["/proc/keys"])
	}
	if got.Denied != unix.EPERM.Error() || got.NewCall != unix.ENOSYS.Error() {
		t.Errorf("a denied call gives %q, an unknown one %q", got.Denied, got.NewCall)
	}
	for line := range strings.Lines(got.Files["/proc/self/cgroup"]) {
		if !strings.HasSuffix(line, ":/\n") {
			t.Errorf("its group is not the root of its namespace: %s", line)
		}
	}
	for line := range strings.Lines(got.Files["/proc/self/mountinfo"]) {
		at := strings.Fields(line)
		switch at[4] {
		case "/":
			if !strings.HasPrefix(at[5], "ro") {
				t.Errorf("the root is %s", at[5])
			}
		case "/shared":
			if !strings.Contains(at[5], "nosuid,nodev,noexec") {
				t.Errorf("/shared is %s", at[5])
			}
		}
		if strings.Contains(line, f.Dir) && at[4] != "/" && at[4] != "/shared" {
			t.Errorf("a mount of the host is left: %s", line)
		}
	}
}

func TestDevicesAndLimitsAreSetBeforeTheProgramRuns(t *testing.T) {
	f := shimtest.New(t)
	s := f.Spec("sleep")
	c := create(t, s)
	defer end(t, c)
	files := map[string]string{
		"memory/%/memory.limit_in_bytes":       "67108864",
		"memory/%/memory.memsw.limit_in_bytes": "67108864",
		"memory/%/memory.swappiness":           "0",
		"pids/%/pids.max":                      "64",
		"cpu/%/cpu.cfs_quota_us":               "100000",
		"devices/%/devices.list": "b *:* m\nc *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\n" +
			"c 5:0 rwm\nc 5:2 rwm\nc 136:* rwm",
	}
	if c.Groups.Mode() == cgroups.V2 { // devices have a test of their own
		files = map[string]string{
			"%/memory.max": "67108864", "%/memory.swap.max": "0", "%/pids.max": "64", "%/cpu.max": "100000 100000", "%/cpu.weight": "39",
		}
	}
	for file, want := range files {
		path := filepath.Join(cgroupMount, strings.ReplaceAll(file, "%", s.Linux.CgroupsPath))
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) && (strings.Contains(file, "memsw") || strings.Contains(file, "swap.max")) {
			continue // a kernel without accounting of swap
		}
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s is %q, %v; want %q", path, b, err, want)
		}
	}
	pids, err := c.Groups.Processes()
	if err != nil || len(pids) != 1 || pids[0] != c.PID {
		t.Errorf("processes %v, %v; want %d", pids, err, c.PID)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(strings.TrimSpace(line), ":"+s.Linux.CgroupsPath) {
			t.Errorf("the process is in %s", line)
		}
	}
	b, err = os.ReadFile("/proc/self/cgroup")
	if err != nil || strings.Contains(string(b), "faasd-sec-test") {
		t.Errorf("this process has moved: %q, %v", b, err)
	}
}

func TestExitCodes(t *testing.T) {
	f := shimtest.New(t)
	c := create(t, f.Spec("exit 7"))
	if err := c.Start(deadline(t)); err != nil {
		t.Error(err)
	}
	if code, err := c.Wait(); code != 7 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := errors.Join(c.Groups.Remove(deadline(t)), c.Close()); err != nil {
		t.Error(err)
	}
	c = create(t, f.Spec("sleep"))
	if err := c.Start(deadline(t)); err != nil {
		t.Error(err)
	}
	if err := c.Start(deadline(t)); err == nil {
		t.Error("a container was started twice")
	}
	if code := end(t, c); code != 137 {
		t.Errorf("exit code %d of a killed container", code)
	}
}

func TestAFailedCreateSaysWhyAndLeavesNothing(t *testing.T) {
	f := shimtest.New(t)
	for want, spoil := range map[string]func(*specs.Spec){
		"enter the working directory": func(s *specs.Spec) { s.Process.Cwd = "/nowhere" },
		"mount the root":              func(s *specs.Spec) { s.Root.Path = f.Dir + "/nowhere" },
		"open " + f.Dir + "/nowhere":  func(s *specs.Spec) { s.Mounts[4].Source = f.Dir + "/nowhere" },
		"mount /tmp":                  func(s *specs.Spec) { s.Mounts[3].Options = []string{"size=lots"} },
		"set net.no.such":             func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no.such": "1"} },
		"process.rlimits": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}}
		},
		"limit memory": func(s *specs.Spec) {
			s.Linux.Resources.Memory.Limit, s.Linux.Resources.Memory.Swap = ptr(int64(1)), ptr(int64(1))
		},
	} {
		s := f.Spec("sleep")
		spoil(s)
		c, err := Create(deadline(t), plan(t, s))
		if err == nil {
			t.Errorf("%s: no error", want)
			end(t, c)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q, want %q in it", err, want)
		}
		if g, err := GroupsAt(s.Linux.CgroupsPath); err != nil || g.Exists() {
			t.Errorf("%s: its cgroups are still there (%v)", want, err)
		}
	}
}

func TestAProgramThatCannotBeExecutedFailsTheStart(t *testing.T) {
	f := shimtest.New(t)
	s := f.Spec("sleep")
	s.Process.Args = []string{"/bin/nothing"}
	c := create(t, s)
	defer end(t, c)
	var failure *stage.Failure
	if err := c.Start(deadline(t)); !errors.As(err, &failure) || !errors.Is(err, unix.ENOENT) || failure.What != "execute /bin/nothing" {
		t.Errorf("got %v", err)
	}
}

// Whatever links an image has, they lead nowhere but into it.
func TestLinksInAnImageDoNotLeadOut(t *testing.T) {
	f := shimtest.New(t)
	outside := filepath.Join(f.Dir, "outside")
	if err := os.Mkdir(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(f.Root, "escape")); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"/escape", "/escape/x"} {
		s := f.Spec("sleep")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: []string{"size=4096"}})
		if c, err := Create(deadline(t), plan(t, s)); err == nil {
			end(t, c)
			t.Errorf("a mount at %s succeeded", at)
		}
	}
	if e, err := os.ReadDir(outside); err != nil || len(e) > 0 {
		t.Errorf("outside there is %v, %v", e, err)
	}
}

func TestTheGroupsOfAnotherContainerAreLeftAlone(t *testing.T) {
	f := shimtest.New(t)
	s := f.Spec("sleep")
	c := create(t, s)
	defer end(t, c)
	if _, err := Create(deadline(t), plan(t, s)); err == nil || !strings.Contains(err.Error(), "has processes already") {
		t.Errorf("a second container in the same groups: %v", err)
	}
	if !c.Groups.Exists() {
		t.Error("the first one's groups are gone")
	}
	if err := c.Start(deadline(t)); err != nil {
		t.Error(err)
	}
}

func TestGroupsAreFoundByABundleOfAnotherVersion(t *testing.T) {
	shimtest.Need(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"novelty":1,"linux":{"cgroupsPath":"/a/b","more":2}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if g, err := GroupsOf(dir); err != nil || g.path != "/a/b" {
		t.Errorf("%+v, %v", g, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"linux":{"cgroupsPath":"/"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := GroupsOf(dir); err == nil {
		t.Error("the root group was taken for a container's")
	}
}
