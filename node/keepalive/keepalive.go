// Package keepalive decides how long a function that nobody calls is kept, from
// how long it was left alone before. It follows the hybrid histogram policy of
// "Serverless in the Wild" (Shahrad and others, USENIX ATC 2020): idle times go
// into a histogram; where that has a clear shape, the tail of it is how long to
// wait for the next call, and where it has none a standard time is.
//
// It differs in three ways. Bins grow with the time they stand for, since what
// matters here ranges from seconds to hours. Times beyond the histogram are not
// forecast: when they are the rule, the standard time holds. And nothing is
// warmed ahead of a call, because a start takes milliseconds; the head of the
// histogram only tells when keeping is of no use.
//
// The package is pure: no clock, no goroutine, no lock.
package keepalive

import (
	"fmt"
	"math"
	"time"
)

const (
	// first is the upper edge of the first bin, and perDouble how many bins it
	// takes for the edge to double: a bin is 19% wide.
	first     = time.Second
	perDouble = 4
	bins      = 14*perDouble + 1 // to 4.5 hours

	minSamples = 8    // fewer say nothing
	maxSamples = 1024 // then all counts are halved, so that old habits fade
	minSpread  = 2.0  // the paper's bound on the bin counts' coefficient of variation
	head, tail = 0.05, 0.99
	margin     = 1.1 // the paper's allowance on the tail
)

// Policy bounds what is decided. All times are positive and Min <= Max.
type Policy struct {
	Standard time.Duration // where the past tells nothing
	Min, Max time.Duration // of what is learned
}

// Validate reports a policy that cannot be followed.
func (p Policy) Validate() error {
	switch {
	case p.Standard <= 0 || p.Min <= 0 || p.Max <= 0:
		return fmt.Errorf("keep-alive: times must be positive: standard %s, min %s, max %s", p.Standard, p.Min, p.Max)
	case p.Min > p.Max:
		return fmt.Errorf("keep-alive: the minimum of %s is over the maximum of %s", p.Min, p.Max)
	}
	return nil
}

// Reason is why a time was chosen.
type Reason string

// The reasons.
const (
	FewSamples Reason = "few_samples" // standard
	NoShape    Reason = "no_shape"    // standard: the idle times are all over the place
	TooLong    Reason = "too_long"    // standard: most idle times are beyond the histogram
	Learned    Reason = "learned"     // the tail, within the bounds
	NotWorth   Reason = "not_worth"   // the minimum: the next call comes after the maximum anyway
)

// Histogram counts idle times. Its zero value is empty.
type Histogram struct {
	count [bins]uint32
	total uint32 // of count
	over  uint32 // beyond the last bin
}

// Observe counts one idle time.
func (h *Histogram) Observe(idle time.Duration) {
	if b := bin(idle); b < bins {
		h.count[b]++
		h.total++
	} else {
		h.over++
	}
	if h.total+h.over < maxSamples {
		return
	}
	h.total, h.over = 0, h.over/2
	for i := range h.count {
		h.count[i] /= 2
		h.total += h.count[i]
	}
}

// Decide says how long to keep what is idle.
func (h *Histogram) Decide(p Policy) (time.Duration, Reason) {
	switch {
	case h.total+h.over < minSamples:
		return p.Standard, FewSamples
	case h.over > h.total:
		return p.Standard, TooLong
	case h.spread() < minSpread:
		return p.Standard, NoShape
	}
	if lower(h.quantile(head)) >= p.Max {
		return p.Min, NotWorth
	}
	keep := time.Duration(float64(upper(h.quantile(tail))) * margin)
	return min(max(keep, p.Min), p.Max), Learned
}

// spread is the coefficient of variation of the bin counts: 0 where all bins
// are alike, large where few bins have all.
func (h *Histogram) spread() float64 {
	mean, sum := float64(h.total)/bins, 0.0
	if mean == 0 {
		return 0
	}
	for _, c := range h.count {
		d := float64(c) - mean
		sum += d * d
	}
	return math.Sqrt(sum/bins) / mean
}

// quantile is the bin within which a share q of the counted times lies.
func (h *Histogram) quantile(q float64) int {
	want, have := uint32(math.Ceil(q*float64(h.total))), uint32(0)
	for i, c := range h.count {
		if have += c; have >= max(want, 1) {
			return i
		}
	}
	return bins - 1
}

// bin is the number of the bin that holds d; bins or more is beyond the last.
func bin(d time.Duration) int {
	if d <= first {
		return 0
	}
	b := int(math.Ceil(math.Log2(float64(d)/float64(first)) * perDouble))
	return min(b, bins)
}

// upper and lower are the edges of a bin.
func upper(b int) time.Duration {
	return time.Duration(float64(first) * math.Exp2(float64(b)/perDouble))
}

func lower(b int) time.Duration {
	if b == 0 {
		return 0
	}
	return upper(b - 1)
}
