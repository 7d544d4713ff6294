package containerd

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/cgroups"
)

func TestCPUPinningHolds(t *testing.T) { eachShim(t, cpuPinningHolds) }

// A sandbox pinned to one core, as a node does it before its function runs, has its
// agent and its function there alone, and leaves nothing of it.
func cpuPinningHolds(t *testing.T, b *bench) {
	r := b.open(t)
	all, err := r.cgroups.Pinnable()
	if err != nil {
		t.Fatal(err)
	}
	s, a := b.start(t, r, b.spec(t, r, b.basic(t, r)))
	group, _ := s.(*Sandbox).Cgroups()
	in, err := group.Contains(cgroups.CPUSet, s.Info().PID)
	if err != nil || !in {
		t.Fatalf("the agent is in its group: %v, %v", in, err)
	}
	core := all[len(all)-1]
	if err := group.Pin(cgroups.CPUs{core}); err != nil {
		t.Fatal(err)
	}
	pid, err := a.Start(false, "/bin/fn", "burn", "20000") // milliseconds, more than this takes
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AdmitLauncher(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = a.Wait() }() // Remove ends it before
	for what, pid := range map[string]int{"agent": s.Info().PID, "function": pid} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if want := fmt.Sprintf("\nCpus_allowed_list:\t%d\n", core); err != nil || !strings.Contains(string(status), want) {
			t.Errorf("%s: %v, want %q:\n%s", what, err, want, status)
		}
	}
	if err := s.Remove(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	if group.Exists() {
		t.Errorf("%s is left", group.Path())
	}
}
