package keepalive

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var policy = Policy{Standard: 5 * time.Minute, Min: 10 * time.Second, Max: 30 * time.Minute}

// history is a function's past: idle times in turn.
func history(times ...time.Duration) *Histogram {
	var h Histogram
	for _, d := range times {
		h.Observe(d)
	}
	return &h
}

func times(n int, f func(i int) time.Duration) []time.Duration {
	out := make([]time.Duration, n)
	for i := range out {
		out[i] = f(i)
	}
	return out
}

func TestKeepingFollowsTheHabit(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for what, c := range map[string]struct {
		past     []time.Duration
		why      Reason
		from, to time.Duration
	}{
		"nothing known":       {nil, FewSamples, policy.Standard, policy.Standard},
		"seven calls":         {times(7, func(int) time.Duration { return time.Second }), FewSamples, policy.Standard, policy.Standard},
		"every two minutes":   {times(50, func(int) time.Duration { return 2 * time.Minute }), Learned, 2 * time.Minute, 3 * time.Minute},
		"busy":                {times(500, func(int) time.Duration { return time.Millisecond }), Learned, policy.Min, policy.Min},
		"mostly every 20 s":   {times(300, func(i int) time.Duration { return 18*time.Second + time.Duration(i%5)*time.Second }), Learned, 22 * time.Second, 35 * time.Second},
		"once in two hours":   {times(40, func(int) time.Duration { return 2 * time.Hour }), NotWorth, policy.Min, policy.Min},
		"once a day":          {times(40, func(int) time.Duration { return 24 * time.Hour }), TooLong, policy.Standard, policy.Standard},
		"anything":            {times(900, func(int) time.Duration { return time.Duration(float64(time.Second) * exp2(r.Float64()*14)) }), NoShape, policy.Standard, policy.Standard},
		"one straggler in 50": {append(times(49, func(int) time.Duration { return time.Minute }), 20*time.Minute), Learned, 20 * time.Minute, 30 * time.Minute},
		"one in 1000":         {append(times(999, func(int) time.Duration { return time.Minute }), 20*time.Minute), Learned, time.Minute, 90 * time.Second},
	} {
		keep, why := history(c.past...).Decide(policy)
		if why != c.why || keep < c.from || keep > c.to {
			t.Errorf("%s: %s for %s, want %s and %s to %s", what, keep, why, c.why, c.from, c.to)
		}
	}
}

func exp2(x float64) float64 {
	v := 1.0
	for ; x >= 1; x-- {
		v *= 2
	}
	return v * (1 + x)
}

// Virtual time: a function is called on a schedule, stopped by the policy, and
// its cold starts are counted.
func TestLearnedTimeStartsColdSeldomAndKeepsLittle(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	gap := func() time.Duration { return time.Duration(float64(8*time.Minute) * (0.9 + 0.2*r.Float64())) }
	run := func(decide func(*Histogram) time.Duration) (cold int, kept time.Duration) {
		var h Histogram
		for range 400 {
			idle, keep := gap(), decide(&h)
			if idle > keep {
				cold++
			}
			kept += min(idle, keep)
			h.Observe(idle)
		}
		return cold, kept
	}
	standard, _ := run(func(*Histogram) time.Duration { return policy.Standard })
	learned, kept := run(func(h *Histogram) time.Duration { d, _ := h.Decide(policy); return d })
	if standard != 400 || learned > minSamples {
		t.Errorf("cold starts: %d with the standard time, %d learned", standard, learned)
	}
	if kept > 400*10*time.Minute {
		t.Errorf("kept for %s", kept)
	}
}

func TestOldHabitsFade(t *testing.T) {
	h := history(times(5000, func(int) time.Duration { return 10 * time.Minute })...)
	for range 20000 {
		h.Observe(30 * time.Second)
	}
	if keep, why := h.Decide(policy); why != Learned || keep > time.Minute {
		t.Errorf("%s, %s", keep, why)
	}
}

func TestPolicyIsChecked(t *testing.T) {
	if err := policy.Validate(); err != nil {
		t.Error(err)
	}
	for _, p := range []Policy{{}, {Standard: 1, Min: 2, Max: 1}, {Standard: 1, Min: -1, Max: 1}, {Min: 1, Max: 1}} {
		if p.Validate() == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}

// Whatever was observed: what is decided is the standard time or within the
// bounds, counts stay bounded, and a bin holds the time that fell into it.
func TestDecisionsStayWithinBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{Standard: time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "standard"))}
		p.Min = time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "min"))
		p.Max = p.Min + time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "more"))
		var h Histogram
		for _, d := range rapid.SliceOfN(rapid.Int64Range(-5, int64(48*time.Hour)), 0, 60).Draw(t, "idle") {
			idle := time.Duration(d)
			for range rapid.IntRange(1, 40).Draw(t, "times") {
				h.Observe(idle)
			}
			if b := bin(idle); b < bins && (idle > upper(b)+1 || b > 0 && idle < lower(b)-1) {
				t.Fatalf("%s is not in %s to %s", idle, lower(b), upper(b))
			}
			if h.total+h.over > maxSamples {
				t.Fatalf("%d samples", h.total+h.over)
			}
			keep, why := h.Decide(p)
			switch why {
			case Learned, NotWorth:
				if keep < p.Min || keep > p.Max {
					t.Fatalf("%s is out of bounds", keep)
				}
			default:
				if keep != p.Standard {
					t.Fatalf("%s for %s", keep, why)
				}
			}
		}
	})
}
