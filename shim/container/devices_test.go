package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/shim/shimtest"
)

// unifiedGroup makes a group of the v2 hierarchy, which on a hybrid machine has no
// controllers, but programs.
func unifiedGroup(t *testing.T) int {
	t.Helper()
	f, err := cgroups.Open()
	if err != nil {
		t.Fatal(err)
	}
	_, unified, err := (&Groups{fs: f}).hierarchies()
	if err != nil || unified == "" {
		const why = "no v2 hierarchy: v1's devices controller is all there is here"
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(why, err)
		}
		t.Skip(why)
	}
	dir := filepath.Join(unified, fmt.Sprintf("faasd-sec-test-devices-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Close(fd), unix.Rmdir(dir)); err != nil {
			t.Error(err)
		}
	})
	return fd
}

// use tries to use a device as a process of the group.
func use(t *testing.T, group int, verb, node string, device uint64) error {
	t.Helper()
	cmd := exec.Command(shimtest.Program())
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=device %s %s %d", shimtest.Inside, verb, node, device))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: group}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v %s", verb, node, err, out)
	}
	switch text := string(bytes.TrimSpace(out)); text {
	case "":
		return nil
	case unix.EPERM.Error():
		return unix.EPERM
	default:
		return errors.New(text)
	}
}

// What v1's controller is told in lines, the program of v2 says as well: the kernel
// is asked about every device and access that a rule tells apart.
func TestTheProgramOfDeviceRulesAllowsWhatTheRulesSay(t *testing.T) {
	shimtest.Need(t)
	group := unifiedGroup(t)
	rules := append(deviceRules(), deviceRule{'c', 1, 11, "r"}, deviceRule{'b', 7, -1, "w"})
	prog, err := loadProgram(rules)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	if err := attachProgram(group, prog); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []struct {
		kind         uint32
		major, minor uint32
		allowed      string // of r, w and rw
	}{
		{unix.S_IFCHR, 1, 3, "r w rw"}, {unix.S_IFCHR, 1, 5, "r w rw"}, {unix.S_IFCHR, 1, 9, "r w rw"},
		{unix.S_IFCHR, 1, 11, "r"},                         // kmsg: reading alone, for this test
		{unix.S_IFCHR, 1, 1, ""}, {unix.S_IFCHR, 1, 4, ""}, // mem, port
		{unix.S_IFCHR, 10, 200, ""}, {unix.S_IFCHR, 10, 229, ""}, // tun, fuse
		{unix.S_IFBLK, 1, 3, ""}, {unix.S_IFBLK, 8, 0, ""}, // numbers that are allowed of the other kind
		{unix.S_IFBLK, 7, 5, "w"},
	} {
		node := filepath.Join(dir, fmt.Sprintf("%x-%d-%d", c.kind, c.major, c.minor))
		device := unix.Mkdev(c.major, c.minor)
		if err := use(t, group, fmt.Sprintf("mknod:%o", c.kind), node, device); err != nil {
			t.Errorf("make %s: %v", node, err)
			continue
		}
		for _, verb := range []string{"r", "w", "rw"} {
			// A device that is not there is no error of the rules.
			denied := errors.Is(use(t, group, verb, node, device), unix.EPERM)
			if want := !strings.Contains(" "+c.allowed+" ", " "+verb+" "); denied != want {
				t.Errorf("open %s for %s: denied %v, want %v", filepath.Base(node), verb, denied, want)
			}
		}
	}
}

func TestARuleThatIsNotUnderstoodIsAnError(t *testing.T) {
	for _, r := range []deviceRule{{'a', -1, -1, "rwm"}, {'c', 1, 3, "rx"}} {
		if _, err := deviceProgram([]deviceRule{r}); err == nil {
			t.Errorf("%s became a program", r)
		}
	}
}
