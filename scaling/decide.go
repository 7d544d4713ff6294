package scaling

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// slack is the share of a replica's target that must be left over before a replica
// counts as one too many: what is just enough now is too little with the next
// wave.
const slack = 0.1

// Load is what a function does at a moment.
type Load struct {
	Replicas int     // that are ready or starting
	InFlight int     // invocations in replicas, and those that wait for one
	Rate     float64 // invocations that began in a second, lately
	CPU      float64 // millicores in use, lately
	Slots    int     // invocations that one replica takes at once; 0 where that is not known
}

// busy reports whether anybody calls the function.
func (l *Load) busy() bool { return l.InFlight > 0 || l.Rate > 0 }

// Memory is what a decision leaves for the next one. The zero value remembers
// nothing. It is not changed in place.
type Memory struct {
	want  int
	known bool
	used  time.Time // when somebody last called
	past  []advice  // within the window; later ones are lower
	seen  int       // replicas at the last decision
}

// advice is what the load alone would have asked for.
type advice struct {
	at   time.Time
	want int
}

// Want is how many replicas were decided on; 0 before the first decision.
func (m Memory) Want() int { return m.want }

// Set is what somebody decided by hand: it holds until the load asks for more, or
// has done with fewer for the whole of the window.
func (m Memory) Set(now time.Time, n int) Memory {
	return Memory{want: n, known: true, used: now, past: []advice{{now, n}}, seen: math.MaxInt}
}

// Decision is how many replicas there should be, and why.
type Decision struct {
	Want int
	Why  string // for a person
}

// Decide says how many replicas a function should have now.
func Decide(p api.Scale, m Memory, now time.Time, l Load) (Memory, Decision) {
	least := max(1, p.Min)
	most := max(least, p.Max)
	if !m.known {
		m = m.Set(now, min(l.Replicas, most))
	}
	if m.used.IsZero() || l.busy() {
		m.used = now
	}
	if idle := now.Sub(m.used); p.Zero && !l.busy() && (m.want == 0 || idle >= time.Duration(p.ZeroAfter)*time.Millisecond) {
		m.want, m.past, m.seen = 0, []advice{{now, 0}}, l.Replicas
		return m, Decision{0, "nobody calls it"}
	}
	asked, why := need(&p, m.want, &l)
	if grown := l.Replicas > max(m.seen, m.want); grown && l.busy() && l.Replicas > asked {
		// Invocations had them started since the last decision, and for a reason.
		asked, why = l.Replicas, "invocations started them"
	}
	m.seen = l.Replicas
	asked = min(max(asked, least), most)
	if asked > m.want {
		m.want, m.past = asked, []advice{{now, asked}}
		return m, Decision{asked, why}
	}
	m.past = remember(m.past, advice{now, asked}, now.Add(-time.Duration(p.DownWindow)*time.Millisecond))
	// The greatest of the window is the first that is remembered.
	want := min(max(m.past[0].want, least), most)
	if want == m.want && asked < want {
		why = "fewer would do, but not for long enough"
	}
	m.want = want
	return m, Decision{want, why}
}

// need is what the load alone asks for, cur being what was decided before.
func need(p *api.Scale, cur int, l *Load) (int, string) {
	value, target := 0.0, float64(p.Target)
	switch p.Type {
	case api.ScaleRPS:
		value = l.Rate
	case api.ScaleCPU:
		value = l.CPU
	default:
		value = float64(l.InFlight)
		if l.Slots > 0 {
			target = min(target, float64(l.Slots)) // more would wait
		}
	}
	if p.Band != nil {
		return step(p.Band, cur, value, target, l)
	}
	per := target * p.Proportion
	why := fmt.Sprintf("%s %.4g, %.4g for each replica", p.Type, value, per)
	up := ceil(value / per)
	if up >= cur {
		return up, why
	}
	return min(cur, ceil(value/(per*(1-slack)))), why
}

// step goes by a band of utilisation.
func step(b *api.ScaleBand, cur int, value, target float64, l *Load) (int, string) {
	used := value / (target * float64(max(cur, 1)))
	why := fmt.Sprintf("%.0f %% of the target is used, %.0f to %.0f are to be", 100*used, 100*b.Low, 100*b.High)
	switch {
	case used > b.High && l.Replicas >= cur: // those asked for before have come
		return cur + b.Add, why
	case used < b.Low:
		return cur - b.Remove, why
	}
	return cur, why
}

func ceil(f float64) int { return int(math.Ceil(min(f, 1e9) - 1e-9)) }

// remember keeps those within the window that are greater than all after them.
func remember(past []advice, a advice, since time.Time) []advice {
	kept := make([]advice, 0, len(past)+1)
	for _, o := range past {
		if !o.at.Before(since) && o.want > a.want {
			kept = append(kept, o)
		}
	}
	// An equal one is as young as the newest: it counts from now.
	return append(slices.Clip(kept), a)
}
