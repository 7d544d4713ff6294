package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestListsOfCoresAreReadAndWritten(t *testing.T) {
	for in, want := range map[string]string{"": "", "0": "0", "2-3": "2-3", "5,2-3": "2-3,5", "0,1,2": "0-2", "4-4": "4"} {
		got, err := ParseCPUs("pin-cores", in)
		if err != nil || got.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{"-1", "a", "3-2", "1,,2", "1,1", "0-2,1", "9999", "1-99999", ","} {
		if got, err := ParseCPUs("pin-cores", bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	if c := (CPUs{1, 3}); !c.Has(CPUs{3}) || c.Has(CPUs{2, 3}) {
		t.Error("cores that are in a list and are not")
	}
}

// A busy process of a pinned group is on its core from one look to the next, and is
// allowed no other.
func TestAPinnedGroupRunsOnItsCoresAlone(t *testing.T) {
	f, g := kernel(t)
	all, err := f.Pinnable()
	if err == nil {
		err = g.Create(CPUSet)
	}
	if err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for _, core := range all[max(0, len(all)-2):] {
		child := g.Child(fmt.Sprintf("core%d", core))
		if f.Mode() != V2 { // what is inside has no more than what it is in
			if err := g.Pin(all); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(child.Create(CPUSet), child.Pin(CPUs{core})); err != nil {
			t.Fatal(err)
		}
		start, cmd := within(t, child, "spin", CPUSet)
		start()
		pid := cmd.Process.Pid
		for end := time.Now().Add(10 * time.Second); stat(t, pid, 14) == "0"; time.Sleep(time.Millisecond) { // it has not run here yet
			if time.Now().After(end) {
				t.Fatal("it does not run")
			}
		}
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if got := stat(t, pid, 39); got != fmt.Sprint(core) {
				t.Fatalf("it ran on core %s, and is pinned to %d", got, core)
			}
		}
		status := content(t, fmt.Sprintf("/proc/%d/status", pid))
		if !strings.Contains(status, fmt.Sprintf("\nCpus_allowed_list:\t%d\n", core)) {
			t.Errorf("pinned to %d:\n%s", core, status)
		}
	}
}

func TestPinningToWhatIsNotThereFails(t *testing.T) {
	f, g := kernel(t)
	all, err := f.Pinnable()
	if err == nil {
		err = g.Create(CPUSet)
	}
	if err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for _, bad := range []CPUs{nil, {all[len(all)-1] + 1}, {all[0], all[len(all)-1] + 1}} {
		if err := g.Pin(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

// A kernel that says yes and holds something else is found out.
func TestPinningThatDoesNotHoldIsAMismatch(t *testing.T) {
	f, g := unified(t)
	for name, is := range map[string]string{"cpuset.cpus": "", "cpuset.cpus.effective": "0-1\n"} {
		if err := os.WriteFile(filepath.Join(f.dir(CPUSet, "/fn"), name), []byte(is), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var m *Mismatch
	if err := g.Pin(CPUs{1}); !errors.As(err, &m) || m.Wanted != "1" || m.Got != "0-1" {
		t.Errorf("%v", err)
	}
}

// stat is a field of a process by its number: 14 is the time that it ran, 39 the
// core that it did so on last (proc_pid_stat(5)).
func stat(t *testing.T, pid, field int) string {
	t.Helper()
	s := content(t, fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Fields(s[strings.LastIndexByte(s, ')')+1:])[field-3]
}
