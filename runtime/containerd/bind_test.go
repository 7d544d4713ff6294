package containerd

import (
	"errors"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// What Bind wrote to files that it kept open is read back by path.
func TestLimitsAreInTheKernelWhenBindReturns(t *testing.T) {
	b := need(t)
	r := b.open(t)
	img := b.basic(t, r)
	for _, res := range []api.Resources{
		{CPU: 300, Memory: 40<<20 + 123, PIDs: 50}, // more than a blank has
		{CPU: 1000, Memory: 24 << 20, PIDs: 9},     // less
		{CPU: 5, Memory: 512 << 20, PIDs: 3000, Tmp: 1 << 20},
	} {
		spec := b.spec(t, r, img)
		spec.Resources = res
		if r.device != (cgroups.Device{}) {
			spec.Resources.ReadBps, spec.Resources.WriteBps = 10<<20, 5<<20
		}
		s, _ := b.bind(t, r, spec)
		box := s.(*Sandbox)
		if err := errors.Join(box.group.Verify(box.outerLimits()), box.functionGroup().Verify(box.functionLimits())); err != nil {
			t.Errorf("%+v: %v", res, err)
		}
		if got, want := *box.outerLimits().PIDs, res.PIDs+runtime.AgentOverhead().PIDs; got != want {
			t.Errorf("the sandbox may have %d processes, want %d", got, want)
		}
		if err := s.Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}

func TestALimitTheKernelRefusesEndsTheBind(t *testing.T) {
	b := need(t)
	r := b.open(t)
	img := b.basic(t, r)
	for name, change := range map[string]func(*runtime.Spec){
		"no such disk":       func(s *runtime.Spec) { s.Resources.ReadBps = 1 << 20 },
		"too many processes": func(s *runtime.Spec) { s.Resources.PIDs = 1 << 40 },
	} {
		spec := b.spec(t, r, img)
		s, _ := b.blank(t, r, spec)
		device := r.device
		r.device = cgroups.Device{Major: 4000, Minor: 17}
		change(&spec)
		err := s.Bind(t.Context(), spec)
		r.device = device
		if !errors.Is(err, runtime.ErrLimits) {
			t.Errorf("%s: %v, want ErrLimits", name, err)
		}
		rec, err := r.readRecord(s.ID())
		if err != nil || rec.Labels != nil || !s.Info().Blank {
			t.Errorf("%s: the record after it: %+v, %v", name, rec, err)
		}
		if err := s.Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}
