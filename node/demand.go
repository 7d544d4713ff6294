package node

import (
	"math"
	"time"
)

const (
	demandSpan = 30              // seconds that are remembered
	fillWeight = 0.2             // of the newest creation in the mean of their times
	fillAtMost = 5 * time.Second // a machine slower than that is not helped by more
)

// demand is how many sandboxes were wanted of the pool lately, second by second.
// Its zero value is none. It does no locking.
type demand struct {
	seconds [demandSpan]int
	newest  int64         // unix second of the newest one
	fill    time.Duration // how long it takes to make one, a moving mean
}

// note counts one that was wanted.
func (d *demand) note(now time.Time) {
	d.advance(now)
	d.seconds[d.newest%demandSpan]++
}

func (d *demand) advance(now time.Time) {
	sec := now.Unix()
	if sec-d.newest >= demandSpan {
		d.seconds = [demandSpan]int{}
		d.newest = sec
	}
	for d.newest < sec {
		d.newest++
		d.seconds[d.newest%demandSpan] = 0
	}
}

// filled counts how long one took to make.
func (d *demand) filled(took time.Duration) {
	if d.fill == 0 {
		d.fill = took
		return
	}
	d.fill += time.Duration(fillWeight * float64(took-d.fill))
}

// want is how many should wait: as many as came in the busiest second of late,
// since they may have come at once, and more where one takes over a second to
// make.
func (d *demand) want(now time.Time) int {
	d.advance(now)
	peak := 0
	for _, n := range d.seconds {
		peak = max(peak, n)
	}
	return int(math.Ceil(float64(peak) * max(1, min(d.fill, fillAtMost).Seconds())))
}
