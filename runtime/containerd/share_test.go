package containerd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// burn has a sandbox compute with n processes for d, all of them on the same
// processor where pinned, and returns once they do.
func (b *bench) burn(t *testing.T, s runtime.Sandbox, n int, d time.Duration, pinned bool) {
	t.Helper()
	for range n {
		a := dial(t, s.Info().SocketDir)
		pid, err := a.Start(false, "/bin/fn", "burn", fmt.Sprint(d.Milliseconds()))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AdmitLauncher(t.Context(), pid); err != nil {
			t.Fatal(err)
		}
		if pinned {
			pin(t, pid)
		}
		go func() { _, _ = a.Wait() }() // Remove may end it before
	}
	deadline := time.Now().Add(20 * time.Second)
	before, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for {
		u, err := s.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if u.CPU > before.CPU+time.Duration(n)*20*time.Millisecond {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d busy processes used %v", n, u.CPU)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// pin keeps all threads of a process, and those that they make, to one processor.
func pin(t *testing.T, pid int) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &set); err != nil {
		t.Fatal(err)
	}
	first := 0
	for !set.IsSet(first) {
		first++
	}
	set.Zero()
	set.Set(first)
	for _, e := range tasks {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
}

// used is the processor time of sandboxes between now and d later.
func used(t *testing.T, d time.Duration, boxes ...runtime.Sandbox) []runtime.Usage {
	t.Helper()
	read := func() []runtime.Usage {
		var out []runtime.Usage
		for _, s := range boxes {
			u, err := s.Usage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, u)
		}
		return out
	}
	before := read()
	<-time.After(d) // the length of the measurement
	after := read()
	for i := range after {
		after[i].CPU -= before[i].CPU
		after[i].Throttled -= before[i].Throttled
	}
	return after
}

func TestCPUQuotaHolds(t *testing.T) { eachShim(t, cpuQuotaHolds) }

func cpuQuotaHolds(t *testing.T, b *bench) {
	r := b.open(t)
	spec := b.spec(t, r, b.basic(t, r))
	spec.Resources.CPU = 200
	s, _ := b.start(t, r, spec)
	b.burn(t, s, 4, time.Minute, false)
	began := time.Now()
	u := used(t, 3*time.Second, s)[0]
	d := time.Since(began) // it may have been longer
	// A period's quota more, at the edges of the measurement.
	if most := d/5 + 60*time.Millisecond; u.CPU > most || u.CPU == 0 {
		t.Errorf("200 millicores used %v in %v, want at most %v", u.CPU, d, most)
	}
	if u.Throttled == 0 {
		t.Error("four busy processes were never held back")
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// More is asked for than there is: what each gets is by weight. One processor has
// to serve both, so that it does not matter what else the machine does.
func TestCPUIsSharedByWeight(t *testing.T) { eachShim(t, cpuIsSharedByWeight) }

func cpuIsSharedByWeight(t *testing.T, b *bench) {
	r := b.open(t)
	img := b.basic(t, r)
	var boxes []runtime.Sandbox
	for _, cpu := range []int64{3000, 1000} { // no quota holds either back on one processor
		spec := b.spec(t, r, img)
		spec.Resources = api.Resources{CPU: cpu, Memory: 64 << 20, PIDs: 64}
		s, _ := b.start(t, r, spec)
		boxes = append(boxes, s)
	}
	for _, s := range boxes { // as many processes each: only the weights differ
		b.burn(t, s, 3, time.Minute, true)
	}
	u := used(t, 5*time.Second, boxes...)
	ratio := u[0].CPU.Seconds() / u[1].CPU.Seconds()
	t.Logf("weights 3 to 1: %v and %v, %.2f to 1", u[0].CPU, u[1].CPU, ratio)
	if ratio < 2 || ratio > 4.5 {
		t.Errorf("weights 3 to 1 gave %.2f to 1", ratio)
	}
	for _, s := range boxes {
		if err := s.Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}
