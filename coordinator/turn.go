package coordinator

import (
	"container/list"
	"time"
)

// turn is one invocation's place in its function's line. The queue's mutex guards
// what changes of it.
type turn struct {
	waiter
	w       *waiting
	line    *line
	arrived uint64        // decides the order in a line, kept over attempts in vain
	stands  *list.Element // nil while it is not in the line
	out     chan struct{} // closed when it is its turn, or when its wait has ended
	err     error         // why: errPushedOut or errCancelled
	trying  bool          // its attempt has not settled
	timer   *time.Timer
}

// turn makes a place in the waiter's line; the invocation stands there while it
// waits. The caller ends it.
func (w *waiting) turn(x waiter) *turn {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.lines[x.key()]
	if l == nil {
		l = &line{lineKey: x.key()}
		w.lines[x.key()] = l
	}
	l.members++
	w.arrivals++
	t := &turn{waiter: x, w: w, line: l, arrived: w.arrivals}
	w.all[t] = struct{}{}
	return t
}

// end leaves the line for good.
func (t *turn) end() {
	w := t.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.take(t)
	w.decided(t)
	if t.line.members--; t.line.members == 0 {
		delete(w.lines, t.line.lineKey)
	}
	delete(w.all, t)
	w.dispatch()
}

// The rest is called with the queue's mutex held.

// stand puts t into its line, behind those that arrived before it. The line had
// been refused as of the event at.
func (w *waiting) stand(t *turn, at uint64) {
	t.out = make(chan struct{})
	l := t.line
	e := l.turns.Back()
	for e != nil && e.Value.(*turn).arrived > t.arrived {
		e = e.Prev()
	}
	if e == nil {
		t.stands = l.turns.PushFront(t)
	} else {
		t.stands = l.turns.InsertAfter(t, e)
	}
	w.standing++
	stale := at < w.changed || at < l.changed
	switch {
	case !l.listed:
		w.list(l, stale)
	case stale:
		w.revive(func(r *line) bool { return r == l })
	default:
		w.demote(l)
	}
	w.dispatch()
}

// list puts a line among those to try, or those refused.
func (w *waiting) list(l *line, ready bool) {
	l.listed = true
	if ready {
		w.ready = append(w.ready, l)
	} else {
		w.refused = append(w.refused, l)
	}
}

// revive moves refused lines to those to try.
func (w *waiting) revive(which func(*line) bool) {
	kept := w.refused[:0]
	for _, l := range w.refused {
		if which(l) {
			w.ready = append(w.ready, l)
		} else {
			kept = append(kept, l)
		}
	}
	clear(w.refused[len(kept):])
	w.refused = kept
}

// demote moves a line from those to try to the refused.
func (w *waiting) demote(l *line) {
	for i, r := range w.ready {
		if r == l {
			w.ready = append(w.ready[:i], w.ready[i+1:]...)
			w.refused = append(w.refused, l)
			return
		}
	}
}

// dispatch lets the oldest of the next line of the highest priority try.
func (w *waiting) dispatch() {
	var busy []*line // with enough attempts under way
	for w.baton == nil && len(w.ready) > 0 {
		next := 0
		for i, l := range w.ready {
			if l.priority > w.ready[next].priority {
				next = i
			}
		}
		l := w.ready[next]
		if w.outranked(l.priority) {
			break // until that attempt settles
		}
		w.ready = append(w.ready[:next], w.ready[next+1:]...)
		l.listed = false
		if l.turns.Len() == 0 {
			continue // listed again when somebody stands in it
		}
		if l.trying >= maxLineTrying {
			busy = append(busy, l)
			continue
		}
		t := w.let(l)
		w.baton = t
		t.timer = time.AfterFunc(w.pass, t.late)
		if l.turns.Len() > 0 {
			w.list(l, true)
		}
	}
	for _, l := range busy {
		w.list(l, true)
	}
}

// outranked reports whether an attempt of a higher priority has not settled.
func (w *waiting) outranked(priority int) bool {
	for _, n := range w.trying[priority+1:] {
		if n > 0 {
			return true
		}
	}
	return false
}

// let has the oldest of a line try. The caller sets its timer.
func (w *waiting) let(l *line) *turn {
	t := l.turns.Front().Value.(*turn)
	w.take(t)
	t.trying = true
	l.trying++
	w.trying[l.priority]++
	close(t.out)
	return t
}

// late lets the next try while t's attempt takes its time, and later counts the
// attempt as settled. That it may run once more than it should, when it races
// with the attempt's end, lets another try a little early.
func (t *turn) late() {
	w := t.w
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.baton == t:
		w.baton = nil
		t.timer.Reset(w.settle - w.pass)
	default:
		w.decided(t)
	}
	w.dispatch()
}

// decided ends t's attempt, if it has not settled.
func (w *waiting) decided(t *turn) {
	if !t.trying {
		return
	}
	t.timer.Stop()
	t.trying = false
	t.line.trying--
	w.trying[t.line.priority]--
	if w.baton == t {
		w.baton = nil
	}
}

// take removes t from its line.
func (w *waiting) take(t *turn) {
	if t.stands == nil {
		return
	}
	t.line.turns.Remove(t.stands)
	t.stands = nil
	w.standing--
}
