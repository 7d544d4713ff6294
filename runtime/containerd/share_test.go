package containerd

import (
	"fmt"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// burn has a sandbox compute with n processes for d, and returns when they do.
func (b *bench) burn(t *testing.T, s runtime.Sandbox, n int, d time.Duration) {
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
		go func() { _, _ = a.Wait() }() // Remove may end it before
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
	b.burn(t, s, 4, 20*time.Second)
	const d = 3 * time.Second
	u := used(t, d, s)[0]
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

// More is asked for than the machine has: what each gets is by weight.
func TestCPUIsSharedByWeight(t *testing.T) { eachShim(t, cpuIsSharedByWeight) }

func cpuIsSharedByWeight(t *testing.T, b *bench) {
	r := b.open(t)
	img := b.basic(t, r)
	cores := int64(goruntime.NumCPU())
	var boxes []runtime.Sandbox
	for _, cpu := range []int64{3000 * cores, 1000 * cores} {
		spec := b.spec(t, r, img)
		spec.Resources = api.Resources{CPU: cpu, Memory: 64 << 20, PIDs: 64}
		s, _ := b.start(t, r, spec)
		boxes = append(boxes, s)
	}
	for _, s := range boxes { // as many processes each: only the weights differ
		b.burn(t, s, int(2*cores), 30*time.Second)
	}
	u := used(t, 4*time.Second, boxes...)
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
