package gossip

import (
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// change is how much a load differs from the one told last.
type change int

const (
	changeNone change = iota
	changeSmall
	changeLarge
	changeUrgent   // the first or last warm slot of a revision
	changeDraining // or the first load ever
)

// compareLoads weighs the step from the load told last to the present one.
func compareLoads(told, now api.NodeLoad, capacity api.Resources, threshold float64) change {
	if told.Epoch != now.Epoch || told.Draining != now.Draining {
		return changeDraining
	}
	if told.Seq == now.Seq {
		return changeNone
	}
	for k, n := range told.Warm {
		if n > 0 && now.Warm[k] == 0 {
			return changeUrgent
		}
	}
	for k, n := range now.Warm {
		if n > 0 && told.Warm[k] == 0 {
			return changeUrgent
		}
	}
	large := moved(told.Free.CPU, now.Free.CPU, capacity.CPU, threshold) ||
		moved(told.Free.Memory, now.Free.Memory, capacity.Memory, threshold) ||
		moved(told.Free.PIDs, now.Free.PIDs, capacity.PIDs, threshold) ||
		moved(told.Free.Scratch, now.Free.Scratch, capacity.Scratch, threshold) ||
		moved(told.Free.Ingress, now.Free.Ingress, capacity.Ingress, threshold) ||
		moved(told.Free.Egress, now.Free.Egress, capacity.Egress, threshold) ||
		moved(told.Free.Ports, now.Free.Ports, capacity.Ports, threshold) ||
		moved(told.Free.Cores, now.Free.Cores, capacity.Cores, threshold) ||
		grown(told.InFlight, now.InFlight, threshold) || grown(told.Running, now.Running, threshold) ||
		grown(told.Pooled, now.Pooled, threshold)
	for k, n := range now.Warm {
		large = large || grown(told.Warm[k], n, threshold)
	}
	switch {
	case large:
		return changeLarge
	case sameLoad(told, now):
		return changeNone
	}
	return changeSmall
}

// moved reports whether a resource changed by more than a share of capacity; of
// an unknown capacity, by a share of what it was.
func moved(was, is, capacity int64, threshold float64) bool {
	base := capacity
	if base <= 0 {
		base = was
	}
	diff := float64(is - was)
	return diff != 0 && max(diff, -diff) >= threshold*float64(base)
}

// grown reports whether a count changed by more than a share of what it was.
func grown(was, is int, threshold float64) bool {
	diff := float64(is - was)
	return diff != 0 && max(diff, -diff) > threshold*float64(max(was, is))
}

// sameLoad compares what the numbers above do not: images, and small changes.
func sameLoad(a, b api.NodeLoad) bool {
	if a.Free != b.Free || a.Running != b.Running || a.Pooled != b.Pooled || a.InFlight != b.InFlight || !slices.Equal(a.Hosts, b.Hosts) || len(a.Images) != len(b.Images) {
		return false
	}
	for i := range a.Images {
		if a.Images[i] != b.Images[i] {
			return false
		}
	}
	for k, n := range a.Warm {
		if b.Warm[k] != n {
			return false
		}
	}
	for k, n := range b.Warm {
		if a.Warm[k] != n {
			return false
		}
	}
	return true
}

// steps remembers, for each kind of change, the number of the last load that
// made it. A load may have gone out on a reply in between: what changed and
// changed back has to be told like any change, or who got that reply believes it
// until the next exchange of all state.
type steps [changeDraining + 1]uint64

// note records the step from one load to the next.
func (s *steps) note(was, is api.NodeLoad, capacity api.Resources, threshold float64) {
	s[compareLoads(was, is, capacity, threshold)] = is.Seq
}

// since is the largest change of resources or slots after the load numbered seq.
func (s *steps) since(seq uint64) change {
	for c := changeUrgent; c > changeSmall; c-- {
		if s[c] > seq {
			return c
		}
	}
	return changeNone
}

// announcer decides when a load is told over one way. It knows the clock only
// through its arguments.
type announcer struct {
	interval, urgent, settle time.Duration
	threshold                float64

	told   api.NodeLoad
	toldAt time.Time
}

// due says when now is to be told, and false if there is nothing to tell. between
// are the steps that led to it. factor stretches the intervals; a change of
// draining is always due at once.
func (a *announcer) due(now api.NodeLoad, between steps, capacity api.Resources, factor time.Duration) (time.Time, bool) {
	var wait time.Duration
	switch max(compareLoads(a.told, now, capacity, a.threshold), between.since(a.told.Seq)) {
	case changeNone:
		return time.Time{}, false
	case changeUrgent:
		wait = a.urgent * factor
	case changeLarge:
		wait = a.interval * factor
	case changeSmall:
		wait = max(a.settle, a.interval*factor)
	case changeDraining:
	}
	return a.toldAt.Add(wait), true
}
