package queue

import (
	"container/heap"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// lines order what waits: owners take turns, and so do the functions of one. A
// function's calls go by priority, then by arrival.
type lines struct {
	limit  int // of one function at once
	owners []*ownerLines
	byName map[api.FunctionName]*line
	byID   map[string]*place
	next   int
	later  later // of all lines, by the time of the next attempt
}

type ownerLines struct {
	owner string
	lines []*line
	next  int
}

type line struct {
	name    api.FunctionName
	owner   *ownerLines
	running int // leased by anybody, or being claimed here
	calls   int // in all
	ready   ready
}

// place is where a call stands.
type place struct {
	call  *Call
	line  *line
	at    int // in line.ready, -1 if it is not there
	late  int // in lines.later, likewise
	taken bool
}

func (l *lines) init(limit int) {
	*l = lines{limit: limit, byName: map[api.FunctionName]*line{}, byID: map[string]*place{}}
}

func (l *lines) line(c *Call) *line {
	if f := l.byName[c.Function]; f != nil {
		return f
	}
	i := slices.IndexFunc(l.owners, func(o *ownerLines) bool { return o.owner == c.Owner })
	if i < 0 {
		i = len(l.owners)
		l.owners = append(l.owners, &ownerLines{owner: c.Owner})
	}
	o := l.owners[i]
	f := &line{name: c.Function, owner: o}
	o.lines = append(o.lines, f)
	l.byName[c.Function] = f
	return f
}

// add puts a call where it belongs: among those that run, that wait here, or
// that another coordinator attempts.
func (l *lines) add(c *Call, mine bool) {
	f := l.line(c)
	p := &place{call: c, line: f, at: -1, late: -1}
	l.byID[c.ID] = p
	f.calls++
	switch {
	case c.leased != 0:
		p.taken = true
		f.running++
	case !mine:
	default:
		heap.Push(&l.later, p) // moved on when its time has come, which may be now
	}
}

func (l *lines) remove(c *Call) {
	p := l.byID[c.ID]
	if p == nil {
		return
	}
	delete(l.byID, c.ID)
	f := p.line
	f.calls--
	if p.taken {
		f.running--
	}
	if p.at >= 0 {
		heap.Remove(&f.ready, p.at)
	}
	if p.late >= 0 {
		heap.Remove(&l.later, p.late)
	}
	if f.calls > 0 {
		return
	}
	delete(l.byName, f.name)
	o := f.owner
	o.lines = slices.DeleteFunc(o.lines, func(x *line) bool { return x == f })
	if len(o.lines) == 0 {
		l.owners = slices.DeleteFunc(l.owners, func(x *ownerLines) bool { return x == o })
	}
}

// take gives the call whose turn it is, nil for none, and when there may be
// another. The caller claims it; give takes one back that it could not.
func (l *lines) take(now time.Time) (*Call, time.Time) {
	ms := now.UnixMilli()
	for len(l.later) > 0 && l.later[0].call.NotUntil <= ms {
		p := heap.Pop(&l.later).(*place)
		heap.Push(&p.line.ready, p)
	}
	var again time.Time
	if len(l.later) > 0 {
		again = time.UnixMilli(l.later[0].call.NotUntil)
	}
	for i := range l.owners {
		o := l.owners[(l.next+i)%len(l.owners)]
		if c := o.take(l.limit); c != nil {
			l.next = (l.next + i + 1) % len(l.owners)
			return c, again
		}
	}
	return nil, again
}

// take is the owner's next: of the highest priority among its functions that may
// run, and in turn among equals.
func (o *ownerLines) take(limit int) *Call {
	best := -1
	for i := range o.lines {
		at := (o.next + i) % len(o.lines)
		f := o.lines[at]
		if len(f.ready) == 0 || f.running >= limit {
			continue
		}
		if best < 0 || f.ready[0].call.Priority > o.lines[best].ready[0].call.Priority {
			best = at
		}
	}
	if best < 0 {
		return nil
	}
	o.next = (best + 1) % len(o.lines)
	f := o.lines[best]
	p := heap.Pop(&f.ready).(*place)
	p.taken = true
	f.running++
	return p.call
}

// give puts a call back that was taken and not claimed; it rests until then.
func (l *lines) give(id string, mine bool, until time.Time) {
	if p := l.byID[id]; p != nil && p.call.leased == 0 {
		c := p.call
		l.remove(c)
		c.NotUntil = max(c.NotUntil, until.UnixMilli())
		l.add(c, mine)
	}
}

// ready is a heap of a function's calls that may be attempted.
type ready []*place

func (r ready) Len() int { return len(r) }
func (r ready) Less(i, j int) bool {
	a, b := r[i].call, r[j].call
	switch {
	case a.Priority != b.Priority:
		return a.Priority > b.Priority
	case a.Arrived != b.Arrived:
		return a.Arrived < b.Arrived
	}
	return a.ID < b.ID
}
func (r ready) Swap(i, j int) { r[i], r[j] = r[j], r[i]; r[i].at, r[j].at = i, j }

// Push implements heap.Interface.
func (r *ready) Push(x any) { p := x.(*place); p.at = len(*r); *r = append(*r, p) }

// Pop implements heap.Interface.
func (r *ready) Pop() any {
	old := *r
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*r, p.at = old[:len(old)-1], -1
	return p
}

// later is a heap of calls by the time of their next attempt.
type later []*place

func (l later) Len() int           { return len(l) }
func (l later) Less(i, j int) bool { return l[i].call.NotUntil < l[j].call.NotUntil }
func (l later) Swap(i, j int)      { l[i], l[j] = l[j], l[i]; l[i].late, l[j].late = i, j }

// Push implements heap.Interface.
func (l *later) Push(x any) { p := x.(*place); p.late = len(*l); *l = append(*l, p) }

// Pop implements heap.Interface.
func (l *later) Pop() any {
	old := *l
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*l, p.late = old[:len(old)-1], -1
	return p
}
