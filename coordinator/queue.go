package coordinator

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// waiting holds the invocations that found no room. Each function has a line for
// each priority; those of the highest priority go first, and among them lines are
// served in turn, so that one with many callers does not keep another from its
// place. Within a line the oldest goes first. Whatever may have made
// room lets the lines try again, one invocation after the other: how many there
// is room for shows only in the attempt.
//
// It promises order among those that wait, not over those that arrive: who finds
// a slot at once takes it.
type waiting struct {
	size   int64
	each   int           // of these for one owner's functions
	pass   time.Duration // passAfter
	settle time.Duration // settleAfter
	count  atomic.Int64  // of those between enter and leave
	clock  atomic.Uint64 // counts events

	kick chan struct{} // tells follow that somebody waits
	soon atomic.Bool   // something ended since follow let all try

	mu       sync.Mutex
	standing int                  // in all lines
	baton    *turn                // whose turn it is: the next waits for it
	trying   [maxPriority + 1]int // attempts that have not settled: those of a lower priority wait for them
	arrivals uint64
	ends     uint64 // calls of ended while somebody waited
	changed  uint64 // clock at the last event for all
	lines    map[lineKey]*line
	owners   map[string]int // places taken, by the owner of the function
	owed     map[string]int // calls of leave that were anticipated for those pushed out, likewise
	all      map[*turn]struct{}
	ready    []*line // to try, in turn; each line is here, in refused or in neither
	refused  []*line // tried in vain since the last event, the oldest attempt first
}

const (
	// passAfter is how long the next waits for the one whose turn it is. By then
	// that one has been refused by what is known here, or counts as on its way to
	// a node, which the next attempt takes into account.
	passAfter = 100 * time.Microsecond
	// settleAfter is when an attempt is taken for one that found room: a node
	// that refuses does so within a round trip.
	settleAfter = 2 * time.Millisecond
	// maxLineTrying bounds a function's attempts that have not settled.
	maxLineTrying = 2
	// othersEvery is which of the slots that come free are offered to another
	// function first.
	othersEvery = 4

	maxPriority = 9

	// retryEvery is how long those that wait rely on being told of room.
	retryEvery = 250 * time.Millisecond
	// spacing is the least time between two events that let everybody try.
	spacing = 5 * time.Millisecond
)

// errPushedOut ends the wait of the youngest of the longest line.
var errPushedOut = errors.New("others have waited for less than this function's callers")

// errCancelled ends the wait of a task that was cancelled.
var errCancelled = &api.Error{Code: api.CodeCancelled, Message: "the task was cancelled while it waited for room"}

func newWaiting(size int) *waiting {
	return &waiting{size: int64(size), each: size, pass: passAfter, settle: settleAfter, kick: make(chan struct{}, 1),
		lines: map[lineKey]*line{}, owners: map[string]int{}, owed: map[string]int{}, all: map[*turn]struct{}{}}
}

// lineKey names a line.
type lineKey struct {
	name     api.FunctionName
	priority int
}

// waiter is who waits, as lists show it and as it may be cancelled.
type waiter struct {
	id       string
	name     api.FunctionName
	revision string             // digest of the one of which it wanted a replica when it came; empty where it runs in a sandbox of its own
	owner    string             // of the function
	sender   sealed.Fingerprint // of the task
	priority int                // 0, the lowest, to 9
	since    time.Time
	deadline time.Time
}

func (x *waiter) key() lineKey { return lineKey{x.name, x.priority} }

// line is one function's invocations that wait.
type line struct {
	lineKey
	members int       // turns that have not ended, standing or not
	turns   list.List // of *turn, oldest first
	trying  int
	listed  bool   // in ready or refused
	changed uint64 // clock at the last event for this function
}

// enter takes a place, or refuses: patience has a bound, in all and for each owner.
func (w *waiting) enter(owner string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owners[owner] >= w.each {
		e := api.Errorf(api.CodeBusy, "%d invocations of this owner's functions wait already", w.each)
		e.Remedy = "retry later, or have the operator raise -queue-each"
		return e
	}
	if w.count.Add(1) > w.size {
		w.count.Add(-1)
		e := api.Errorf(api.CodeBusy, "the cluster is full and %d invocations wait already", w.size)
		e.Remedy = "retry later, or add a node"
		return e
	}
	w.owners[owner]++
	return nil
}

// leave gives the place of one that entered back.
func (w *waiting) leave(owner string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owed[owner] > 0 {
		less(w.owed, owner)
		return
	}
	less(w.owners, owner)
	w.count.Add(-1)
}

// less counts one down, and keeps no zero.
func less(m map[string]int, key string) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}

// makeRoom lets an invocation in where all places are taken and some line has a
// lower priority, or another function's line of the same is longer by more than
// one: the youngest of the longest line of the lowest priority goes, so that
// nobody is kept out by the number of another's callers.
func (w *waiting) makeRoom(k lineKey, owner string) {
	if w.count.Load() < w.size {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owners[owner] >= w.each {
		return // it will be refused for that
	}
	own, longest := 0, (*line)(nil)
	for _, l := range w.lines {
		if l.lineKey == k {
			own = l.turns.Len()
		}
		if l.turns.Len() == 0 || l.priority > k.priority {
			continue
		}
		if longest == nil || l.priority < longest.priority || l.priority == longest.priority && l.turns.Len() > longest.turns.Len() {
			longest = l
		}
	}
	if longest == nil || longest.priority == k.priority && longest.turns.Len() <= own+1 {
		return
	}
	t := longest.turns.Back().Value.(*turn)
	w.take(t)
	t.err = errPushedOut
	close(t.out)
	w.count.Add(-1)
	less(w.owners, t.owner)
	w.owed[t.owner]++
}

// moment is when an attempt began, and whose it is; turn is nil in the first,
// before the invocation stands anywhere.
type moment struct {
	at   uint64
	turn *turn
}

// next is taken before an attempt: what happens during it counts.
func (w *waiting) next() moment { return moment{at: w.clock.Load()} }

// wait returns when it is the invocation's turn to try again. from is what next
// gave before the attempt that found no room, changed is closed once the view of
// that attempt is outdated.
func (w *waiting) wait(ctx context.Context, from moment, changed <-chan struct{}) error {
	t := from.turn
	w.mu.Lock()
	w.decided(t)
	if err := t.err; err != nil { // cancelled during the attempt
		w.dispatch()
		w.mu.Unlock()
		return err
	}
	at := from.at
	select {
	case <-changed:
		at = 0 // whatever it was refused for may be over
	default:
	}
	w.stand(t, at)
	out := t.out
	w.mu.Unlock()
	select {
	case w.kick <- struct{}{}:
	default:
	}
	select {
	case <-out:
		w.mu.Lock() // it tries from now on, and may be cancelled meanwhile
		defer w.mu.Unlock()
		return t.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ended hands the slot that one of name's invocations gave up to the oldest of
// its line of the highest priority, at once and whoever's turn it is: a slot of that function is of most
// use to it. Where nobody stands there, and every so often where somebody does,
// the line that has waited longest for its turn goes before it: else who holds
// the slots would hand them on among its own for ever. So does a line of a higher
// priority.
// The others have to wait for signal's event, or each end of an invocation would
// cost an attempt of every function.
func (w *waiting) ended(name api.FunctionName) {
	if w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.clock.Add(1)
	w.ends++
	var l *line
	for priority := maxPriority; priority >= 0; priority-- {
		if x := w.lines[lineKey{name, priority}]; x != nil {
			x.changed = now
			if l == nil && x.turns.Len() > 0 {
				l = x
			}
		}
	}
	first := foremost(w.refused)
	if l != nil && !w.outranked(l.priority) && (first == nil || first.priority <= l.priority && (w.ends%othersEvery != 0 || first.priority < l.priority)) {
		t := w.let(l)
		t.timer = time.AfterFunc(w.settle, t.late)
		return
	}
	w.revive(func(r *line) bool { return r == first || r.name == name })
	w.dispatch()
}

// foremost is the first line of those with the highest priority, nil for none.
func foremost(lines []*line) *line {
	var f *line
	for _, l := range lines {
		if f == nil || l.priority > f.priority {
			f = l
		}
	}
	return f
}

// signal says that something ended, which may have made room for anyone.
func (w *waiting) signal() {
	if w.count.Load() == 0 || w.soon.Swap(true) {
		return
	}
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// event lets all try again.
func (w *waiting) event() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changed = w.clock.Add(1)
	w.revive(func(*line) bool { return true })
	w.dispatch()
}

// idle reports whether nobody stands in a line.
func (w *waiting) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.standing == 0
}

// follow lets those that wait try again when the mesh or the end of an
// invocation gives reason to, and now and then without. It ends with ctx.
func (w *waiting) follow(ctx context.Context, mesh Mesh) {
	rest := time.NewTimer(spacing)
	defer rest.Stop()
	pause := func(d time.Duration, changed, kick <-chan struct{}) bool {
		rest.Reset(d)
		select {
		case <-rest.C:
		case <-changed:
		case <-kick:
		case <-ctx.Done():
			return false
		}
		return true
	}
	for {
		select {
		case <-w.kick:
		case <-ctx.Done():
			return
		}
		for !w.idle() {
			version := mesh.Snapshot().Version // before the event: attempts see this one or a later one
			w.soon.Store(false)
			w.event()
			if !pause(spacing, nil, nil) {
				return
			}
			for until := time.Now().Add(retryEvery - spacing); !w.soon.Load() && time.Now().Before(until); {
				changed := mesh.Changed(version)
				if !pause(time.Until(until), changed, w.kick) {
					return
				}
				if isClosed(changed) || w.idle() {
					break
				}
			}
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
