package scaling_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/scaling"
)

// policy is ten invocations for each replica, from 1 to 10, none after a minute,
// fewer after half a minute.
func policy(change ...func(*api.Scale)) api.Scale {
	p := api.DefaultScale()
	p.Max, p.Target, p.Proportion = 10, 10, 1
	p.ZeroAfter, p.DownWindow = time.Minute.Milliseconds(), (30 * time.Second).Milliseconds()
	for _, f := range change {
		f(&p)
	}
	return p
}

// at is a load from a moment on, and what is to come of it by the moment before
// the next one.
type at struct {
	second int
	load   scaling.Load
	want   int
}

func TestScenarios(t *testing.T) {
	inFlight := func(n int) scaling.Load { return scaling.Load{InFlight: n} }
	for _, c := range []struct {
		name   string
		policy api.Scale
		steps  []at
	}{
		{"from zero to what is needed, and back after the window and the pause", policy(),
			[]at{{0, inFlight(0), 0}, {10, inFlight(35), 4}, {20, inFlight(0), 4}, {50, inFlight(0), 1}, {78, inFlight(0), 1}, {79, inFlight(0), 0}, {90, inFlight(1), 1}}},
		{"never over the maximum", policy(), []at{{0, inFlight(5000), 10}}},
		{"a minimum is kept", policy(func(p *api.Scale) { p.Min, p.Zero = 3, false }), []at{{0, inFlight(0), 3}, {10, inFlight(60), 6}, {20, inFlight(0), 6}, {200, inFlight(0), 3}}},
		{"a minimum with zero is had while somebody calls", policy(func(p *api.Scale) { p.Min = 3 }), []at{{0, inFlight(0), 0}, {5, inFlight(1), 3}, {70, inFlight(0), 3}, {135, inFlight(0), 0}}},
		{"pinned", api.Pinned(4), []at{{0, inFlight(0), 4}, {10, inFlight(10000), 4}, {20, inFlight(0), 4}, {5000, inFlight(0), 4}}},
		{"pinned, and none while nobody calls", policy(func(p *api.Scale) { p.Min, p.Max = 2, 2 }), []at{{0, inFlight(0), 0}, {1, inFlight(900), 2}, {2, inFlight(0), 2}, {70, inFlight(0), 0}}},
		{"a burst leaves no flapping", policy(), []at{{0, inFlight(10), 1}, {5, inFlight(90), 9}, {6, inFlight(10), 9}, {20, inFlight(88), 9}, {21, inFlight(10), 9}, {40, inFlight(10), 9}, {52, inFlight(10), 2}}},
		{"a target beyond what one replica takes", policy(func(p *api.Scale) { p.Target = 50 }), []at{{0, scaling.Load{InFlight: 20, Slots: 4}, 5}}},
		{"by rate", policy(func(p *api.Scale) { p.Type = api.ScaleRPS }), []at{{0, scaling.Load{Rate: 61, InFlight: 1}, 7}}},
		{"by processor", policy(func(p *api.Scale) { p.Type, p.Target = api.ScaleCPU, 500 }), []at{{0, scaling.Load{CPU: 1400, InFlight: 1}, 3}}},
		{"with a part of the target only", policy(func(p *api.Scale) { p.Proportion = 0.5 }), []at{{0, inFlight(20), 4}}},
		{"what is just enough stays", policy(), []at{{0, inFlight(40), 4}, {10, inFlight(30), 4}, {60, inFlight(28), 4}, {95, inFlight(26), 4}, {126, inFlight(26), 3}}},
		{"steps of a band", policy(func(p *api.Scale) { p.Band = &api.ScaleBand{Low: 0.3, High: 0.8, Add: 3, Remove: 2} }),
			[]at{{0, inFlight(1), 1}, {1, scaling.Load{InFlight: 9, Replicas: 1}, 4}, {2, scaling.Load{InFlight: 39, Replicas: 1}, 4},
				{3, scaling.Load{InFlight: 39, Replicas: 4}, 7}, {4, scaling.Load{InFlight: 39, Replicas: 7}, 7},
				{5, scaling.Load{InFlight: 7, Replicas: 7}, 7}, {36, scaling.Load{InFlight: 7, Replicas: 7}, 5}, {70, scaling.Load{InFlight: 7, Replicas: 5}, 3}}},
		{"a factor of nothing never scales", policy(func(p *api.Scale) { p.Band = &api.ScaleBand{Low: 0.3, High: 0.8} }), []at{{0, inFlight(500), 1}, {1, scaling.Load{InFlight: 500, Replicas: 1}, 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m scaling.Memory
			var d scaling.Decision
			start := time.Unix(1_700_000_000, 0)
			for i, s := range c.steps {
				until := s.second + 1
				if i+1 < len(c.steps) {
					until = c.steps[i+1].second
				}
				for second := s.second; second < until; second++ { // as a controller asks
					m, d = scaling.Decide(c.policy, m, start.Add(time.Duration(second)*time.Second), s.load)
					if second == s.second && d.Want != s.want {
						t.Fatalf("second %d: %d replicas (%s), want %d", second, d.Want, d.Why, s.want)
					}
				}
			}
		})
	}
}

// TestNoLoadLeadsOutsideThePolicy holds decisions against the policy under loads
// that make no sense.
func TestNoLoadLeadsOutsideThePolicy(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := policy(func(p *api.Scale) {
			p.Min = 1 + r.IntN(5)
			p.Max = p.Min + r.IntN(20)
			p.Zero = r.IntN(2) == 0
			p.Type = []string{api.ScaleCapacity, api.ScaleRPS, api.ScaleCPU}[r.IntN(3)]
			if r.IntN(3) == 0 {
				p.Band = &api.ScaleBand{Low: 0.2, High: 0.7, Add: r.IntN(5), Remove: r.IntN(5)}
			}
		})
		var m scaling.Memory
		var d scaling.Decision
		now := time.Unix(1_700_000_000, 0)
		for range 400 {
			now = now.Add(time.Duration(r.IntN(20000)) * time.Millisecond)
			if r.IntN(20) == 0 {
				m = m.Set(now, r.IntN(60))
			}
			l := scaling.Load{Replicas: r.IntN(30), InFlight: r.IntN(300), Rate: 300 * r.Float64(), CPU: 5000 * r.Float64(), Slots: r.IntN(64)}
			if r.IntN(3) == 0 {
				l = scaling.Load{Replicas: r.IntN(30)}
			}
			was := m.Want()
			m, d = scaling.Decide(p, m, now, l)
			switch {
			case d.Want == 0 && p.Zero && l.InFlight == 0 && l.Rate == 0:
			case d.Want < p.Min || d.Want > p.Max:
				t.Fatalf("seed %d: %d replicas of %d to %d, from %d (%s)", seed, d.Want, p.Min, p.Max, was, d.Why)
			}
		}
	}
}

// TestNoiseMakesNoReplicasComeAndGo: a load that swings by a tenth around its mean,
// with gaps of a few seconds, changes the number while it settles and then never
// more than once in a window; a steady one ends where it is enough and no replica
// is one too many.
func TestNoiseMakesNoReplicasComeAndGo(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		p := policy(func(p *api.Scale) { p.Max = 100 })
		mean := 5 + 500*r.Float64()
		var m scaling.Memory
		now := time.Unix(1_700_000_000, 0)
		downs, last := 0, 0
		minutes := 20
		for range 60 * minutes {
			now = now.Add(time.Second)
			n := mean * (1 + 0.1*(2*r.Float64()-1))
			if r.IntN(10) == 0 {
				n = 0
			}
			var d scaling.Decision
			m, d = scaling.Decide(p, m, now, scaling.Load{Replicas: last, InFlight: int(n)})
			if d.Want < last {
				downs++
			}
			last = d.Want
		}
		if downs > 1 {
			t.Errorf("seed %d, mean %.0f: fewer %d times in %d minutes", seed, mean, downs, minutes)
		}
		steady := int(mean)
		for range 120 {
			now = now.Add(time.Second)
			m, _ = scaling.Decide(p, m, now, scaling.Load{Replicas: m.Want(), InFlight: steady})
		}
		least := int(math.Ceil(float64(steady) / 10))
		if most := int(math.Ceil(float64(steady) / 9)); m.Want() < least || m.Want() > most {
			t.Errorf("seed %d: %d in flight end at %d replicas, want %d to %d", seed, steady, m.Want(), least, most)
		}
	}
}

func TestWhatSomebodySetHoldsForTheWindow(t *testing.T) {
	p := policy()
	now := time.Unix(1_700_000_000, 0)
	m := scaling.Memory{}.Set(now, 6)
	for second := range 60 {
		var d scaling.Decision
		m, d = scaling.Decide(p, m, now.Add(time.Duration(second)*time.Second), scaling.Load{Replicas: 6, InFlight: 1})
		if want := 6; second <= 30 && d.Want != want {
			t.Fatalf("second %d: %d replicas, %d were set", second, d.Want, want)
		}
	}
	if m.Want() != 1 {
		t.Errorf("a minute later there are %d", m.Want())
	}
}
