package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/node"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// boxed is a sandbox that is a group alone.
type boxed struct {
	runtime.Sandbox
	group cgroups.Group
}

func (b boxed) Cgroups() (sandbox, function cgroups.Group) { return b.group, b.group.Child("fn") }

func TestCoresAreLentAndPinnedToOnThisMachine(t *testing.T) {
	machine, err := cgroups.Open()
	var have cgroups.CPUs
	if err == nil {
		have, err = machine.Pinnable()
	}
	group := machine.Group(fmt.Sprintf("/faasd-sec-cores-%d", os.Getpid()))
	if err == nil {
		err = group.Create(cgroups.CPUSet)
	}
	if err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := group.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	var deps node.Deps
	last := have[len(have)-1]
	if err := lendCores(options{cores: cgroups.CPUs{last, last + 1}}, machine, &deps); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a core that is not there: %v", err)
	}
	if err := lendCores(options{}, machine, &deps); err != nil || len(deps.Fittings) != 0 {
		t.Errorf("none: %v, %d", err, len(deps.Fittings))
	}
	if err := lendCores(options{cores: cgroups.CPUs{last}}, machine, &deps); err != nil || len(deps.Fittings) != 1 {
		t.Fatalf("%v, %d", err, len(deps.Fittings))
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone
		_ = cmd.Wait()
	})
	s := node.Fitted{ID: "s1", PID: cmd.Process.Pid, Sandbox: boxed{group: group}, Cores: []int{last}, Needs: api.Needs{Resources: api.Resources{Cores: 1}}}
	pin := deps.Fittings[0]
	if err := pin.Attach(t.Context(), s); err == nil {
		t.Error("a process that is not in the group passed for pinned")
	}
	// A group of v1 takes processes once it has cores.
	if err := group.Pin(have); err != nil {
		t.Fatal(err)
	}
	if err := group.Add(s.PID, cgroups.CPUSet); err != nil {
		t.Fatal(err)
	}
	less := s
	less.Cores = nil
	if err := pin.Attach(t.Context(), less); err == nil {
		t.Error("a sandbox without the cores that it needs was pinned")
	}
	if err := pin.Recover(t.Context(), []node.Fitted{s}); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
	if want := fmt.Sprintf("\nCpus_allowed_list:\t%d\n", last); err != nil || !strings.Contains(string(status), want) {
		t.Errorf("%v, want %q:\n%s", err, want, status)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := pin.Recover(t.Context(), []node.Fitted{s}); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}
