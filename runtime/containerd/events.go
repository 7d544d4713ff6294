package containerd

import (
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// eventQueue holds events for a reader that may be slow, so that nobody who
// has one waits. It is bounded by the number of sandboxes: of each sandbox it
// holds each kind at most once, since a second one that was not read yet says
// nothing new. (A sandbox has but one exit.)
type eventQueue struct {
	out  chan runtime.Event
	wake chan struct{}
	done chan struct{}
	idle chan struct{} // closed when the pump has ended

	mu      sync.Mutex
	pending []runtime.Event
}

func newEventQueue() *eventQueue {
	q := &eventQueue{
		out: make(chan runtime.Event), wake: make(chan struct{}, 1),
		done: make(chan struct{}), idle: make(chan struct{}),
	}
	go q.pump()
	return q
}

func (q *eventQueue) put(e runtime.Event) {
	q.mu.Lock()
	for _, p := range q.pending {
		if p.ID == e.ID && p.Kind == e.Kind {
			q.mu.Unlock()
			return
		}
	}
	q.pending = append(q.pending, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *eventQueue) next() (runtime.Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		return runtime.Event{}, false
	}
	e := q.pending[0]
	q.pending = q.pending[1:]
	return e, true
}

func (q *eventQueue) pump() {
	defer close(q.idle)
	defer close(q.out)
	for {
		e, ok := q.next()
		if !ok {
			select {
			case <-q.done:
				return
			case <-q.wake:
			}
			continue
		}
		select {
		case <-q.done:
			return
		case q.out <- e:
		}
	}
}

// close ends the pump and closes the channel; unread events are lost.
func (q *eventQueue) close() {
	close(q.done)
	<-q.idle
}

// cgroupEvent is told by the watcher that a counter of a sandbox grew.
func (r *Runtime) cgroupEvent(id string, c cgroups.Counter, _ int64) {
	kind := runtime.EventOOM
	if c == cgroups.PIDsRefusals {
		kind = runtime.EventPIDsLimit
	}
	r.events.put(runtime.Event{Kind: kind, ID: id, At: time.Now()})
}
