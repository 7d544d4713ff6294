package coordinator

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// stood is a queue in which attempts stay undecided until the test says more.
type stood struct {
	*waiting
	t   testing.TB
	ctx context.Context
	all map[string]*stander
}

// stander is one invocation in it.
type stander struct {
	turn *turn
	done chan error // what wait gave
}

func newStood(t testing.TB, size int) *stood {
	ctx, cancel := context.WithCancel(context.Background())
	w := newWaiting(size)
	w.pass, w.settle = time.Hour, 2*time.Hour
	s := &stood{waiting: w, t: t, ctx: ctx, all: map[string]*stander{}}
	t.Cleanup(func() {
		cancel()
		for _, x := range s.all {
			<-x.done
			x.turn.end()
			w.leave("o")
		}
		if w.standing != 0 || w.baton != nil || w.count.Load() != 0 || len(w.owed) != 0 || len(w.owners) != 0 || len(w.all) != 0 || len(w.lines) != 0 {
			t.Errorf("left behind: %d stand, %d are counted, %d owed, %d lines", w.standing, w.count.Load(), len(w.owed), len(w.lines))
		}
	})
	return s
}

// arrive lets an invocation of the function that id begins with, "a" in "a3",
// stand in the queue after an attempt that found no room.
func (s *stood) arrive(ids ...string) {
	s.t.Helper()
	for _, id := range ids {
		name := api.FunctionName(id[:1] + ".ns")
		s.makeRoom(lineKey{name: name}, "p")
		if err := s.enter("o"); err != nil {
			s.t.Fatal(err)
		}
		x := &stander{turn: s.waiting.turn(waiter{name: name, owner: "o"})}
		s.all[id] = x
		s.refuse(id)
	}
}

// refuse ends the attempt of id in vain, as of now.
func (s *stood) refuse(id string) { s.refuseAt(id, s.next()) }

func (s *stood) refuseAt(id string, from moment) {
	s.t.Helper()
	x := s.all[id]
	if x.done != nil {
		<-x.done // it was let go
	}
	done := make(chan error, 1)
	from.turn, x.done = x.turn, done
	s.mu.Lock()
	before, was := s.standing, x.turn.out
	s.mu.Unlock()
	go func() { done <- s.wait(s.ctx, from, nil) }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Microsecond) {
		s.mu.Lock()
		arrived := s.standing > before || x.turn.out != was
		s.mu.Unlock()
		if arrived {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s does not stand in the queue", id)
		}
	}
}

// served ends the attempt of id with success.
func (s *stood) served(id string) {
	x := s.all[id]
	delete(s.all, id)
	x.turn.end()
	s.leave("o")
}

// want expects that it is the turn of id, "" of nobody.
func (s *stood) want(id string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	got := ""
	for name, x := range s.all {
		if x.turn == s.baton {
			got = name
		}
	}
	if got != id {
		s.t.Errorf("it is the turn of %q, want %q", got, id)
	}
}

// late has the attempt of id take its time.
func (s *stood) late(id string) { s.all[id].turn.late() }

func TestFunctionsTakeTurnsAndTheOldestGoesFirst(t *testing.T) {
	s := newStood(t, 100)
	s.arrive("a1", "a2", "a3", "b1", "b2", "c1")
	s.want("")
	s.event()
	for _, id := range []string{"a1", "b1", "c1", "a2", "b2", "a3"} {
		s.want(id)
		s.served(id)
	}
	s.want("")
}

func TestOneThatIsRefusedKeepsItsPlace(t *testing.T) {
	s := newStood(t, 100)
	s.arrive("a1", "a2", "a3")
	s.event()
	s.want("a1")
	s.late("a1")
	s.want("a2")
	s.refuse("a2") // the younger comes back first
	s.refuse("a1")
	s.want("") // for now there is no room for this function
	s.event()
	for _, id := range []string{"a1", "a2", "a3"} {
		s.want(id)
		s.served(id)
	}
}

func TestWhatHappensDuringAnAttemptCounts(t *testing.T) {
	s := newStood(t, 100)
	s.arrive("a1", "b1")
	s.event()
	s.want("a1")
	s.late("a1")
	s.want("b1")
	fromA, fromB := s.next(), s.next()
	s.ended("a.ns") // a slot of a's comes free, too late for the attempt to see it
	s.refuseAt("b1", fromB)
	s.refuseAt("a1", fromA)
	s.want("a1")
	from := s.next()
	s.event()
	s.refuseAt("a1", from)
	s.want("b1")
	s.refuse("b1")
	s.want("a1")
}

func TestAnAttemptOnAnOldViewIsMadeAgain(t *testing.T) {
	s := newStood(t, 100)
	s.arrive("a1")
	s.event()
	from, changed := s.next(), make(chan struct{})
	from.turn = s.all["a1"].turn
	close(changed)
	<-s.all["a1"].done
	s.all["a1"].done = make(chan error, 1)
	if err := s.wait(s.ctx, from, changed); err != nil {
		t.Error(err)
	}
	s.all["a1"].done <- nil
	s.want("a1")
}

// let waits until id was let go, without it being its turn.
func (s *stood) let(id string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.all[id].turn; !t.trying || t == s.baton {
		s.t.Errorf("%s was not handed the slot", id)
	}
}

func TestASlotIsHandedOnWithinItsFunction(t *testing.T) {
	s := newStood(t, 100)
	s.arrive("a1", "a2", "b1", "c1")
	s.event()
	s.want("a1") // undecided: the others wait for it
	s.ended("b.ns")
	s.let("b1")
	s.want("a1")
	s.refuse("b1")
	s.ended("a.ns")
	s.let("a2")
	s.served("a1")
	s.want("c1")
	s.refuse("c1")
	s.want("")
	s.ended("nobody.ns") // who waits longest for a turn may have room now
	s.want("b1")
}

func TestNowAndThenASlotIsOfferedToWhoWaitsLongestForATurn(t *testing.T) {
	s := newStood(t, 100)
	s.arrive("a1", "b1", "c1", "c2", "c3", "c4", "c5", "c6", "c7")
	for i, next := range []string{"a1", "b1"} {
		for n := range othersEvery - 1 {
			id := fmt.Sprintf("c%d", i*(othersEvery-1)+n+1)
			s.ended("c.ns")
			s.want("")
			s.let(id)
			s.served(id)
		}
		s.ended("c.ns")
		s.want(next)
		s.refuse(next)
		last := fmt.Sprintf("c%d", (i+1)*(othersEvery-1)+1)
		s.want(last) // it did not help another: back to its own
		s.refuse(last)
	}
}

// Room for one must not wake hundreds.
func TestAnEventLetsEachFunctionTryNotEachInvocation(t *testing.T) {
	s := newStood(t, 1000)
	var ids []string
	for f := range 20 {
		for i := range 10 {
			ids = append(ids, fmt.Sprintf("%c%d", 'a'+f, i))
		}
	}
	s.arrive(ids...)
	s.event()
	attempts := 0
	for {
		now := ""
		s.mu.Lock()
		for id, x := range s.all {
			if x.turn == s.baton {
				now = id
			}
		}
		s.mu.Unlock()
		if now == "" {
			break
		}
		attempts++
		s.refuse(now)
	}
	if attempts != 20 {
		t.Errorf("%d attempts in vain for one event of 20 functions with 10 callers each", attempts)
	}
}

func TestAnAttemptThatTakesLongMakesWayForTheNext(t *testing.T) {
	s := newStood(t, 100)
	s.waiting.pass, s.waiting.settle = time.Millisecond, 2*time.Millisecond
	s.arrive("a1", "a2", "a3", "a4", "a5")
	s.event()
	for _, id := range []string{"a1", "a2", "a3", "a4", "a5"} {
		select {
		case err := <-s.all[id].done:
			s.all[id].done <- err
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s does not get its turn", id)
		}
	}
}

func TestNobodyIsKeptOutByTheNumberOfAnothersCallers(t *testing.T) {
	s := newStood(t, 4)
	s.arrive("a1", "a2", "a3", "a4")
	s.makeRoom(lineKey{name: "a.ns"}, "p")
	if err := s.enter("o"); api.CodeOf(err) != api.CodeBusy {
		t.Errorf("one more of the same: %v", err)
	}
	s.arrive("b1")
	if err := <-s.all["a4"].done; !errors.Is(err, errPushedOut) {
		t.Errorf("the youngest of the longest line: %v", err)
	}
	s.served("a4")
	s.arrive("b2")
	if err := <-s.all["a3"].done; !errors.Is(err, errPushedOut) {
		t.Errorf("the youngest of the longest line: %v", err)
	}
	s.served("a3")
	s.makeRoom(lineKey{name: "b.ns"}, "p") // two each: enough
	if err := s.enter("o"); api.CodeOf(err) != api.CodeBusy {
		t.Errorf("beyond its share: %v", err)
	}
	if n := s.count.Load(); n != 4 {
		t.Errorf("%d are counted, want 4", n)
	}
	s.event()
	for _, id := range []string{"a1", "b1", "a2", "b2"} {
		s.want(id)
		s.served(id)
	}
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	w := newWaiting(10)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := w.enter("o"); err != nil {
		t.Fatal(err)
	}
	turn := w.turn(waiter{name: "a.ns", owner: "o"})
	from := w.next()
	from.turn = turn
	if err := w.wait(ctx, from, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	turn.end()
	w.leave("o")
	if w.standing+len(w.lines) != 0 || w.count.Load() != 0 {
		t.Errorf("left behind: %d stand, %d lines", w.standing, len(w.lines))
	}
}

// Of those that wait, the highest priority goes first, whoever arrived before;
// where all places are taken it pushes the lowest out.
func TestPriorityGoesBeforeArrival(t *testing.T) {
	w := newWaiting(3)
	w.each = 10
	w.pass, w.settle = time.Hour, 2*time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	type one struct {
		t    *turn
		done chan error
	}
	arrive := func(name api.FunctionName, priority int) one {
		t.Helper()
		x := waiter{name: name, owner: "o", priority: priority}
		w.makeRoom(x.key(), "o")
		if err := w.enter("o"); err != nil {
			t.Fatal(err)
		}
		o := one{w.turn(x), make(chan error, 1)}
		from := w.next()
		from.turn = o.t
		go func() { o.done <- w.wait(ctx, from, nil) }()
		for stands := false; !stands; time.Sleep(time.Millisecond) {
			w.mu.Lock()
			stands = o.t.stands != nil
			w.mu.Unlock()
			if ctx.Err() != nil {
				t.Fatal("it does not stand")
			}
		}
		return o
	}
	low, mid, other := arrive("a.ns", 1), arrive("a.ns", 5), arrive("b.ns", 0)
	high := arrive("b.ns", 9)
	if err := <-other.done; !errors.Is(err, errPushedOut) {
		t.Errorf("the lowest: %v", err)
	}
	// A slot of a's came free: b's task goes first all the same.
	w.ended("a.ns")
	for i, next := range []one{high, mid, low} {
		select {
		case err := <-next.done:
			if err != nil {
				t.Error(i, err)
			}
		case <-ctx.Done():
			t.Fatalf("number %d is not served", i)
		}
		next.t.end() // it found room
		w.leave("o")
		w.ended("a.ns")
	}
	other.t.end()
	w.leave("o")
	if w.count.Load() != 0 || len(w.owners) != 0 || len(w.owed) != 0 || len(w.all) != 0 || len(w.lines) != 0 {
		t.Errorf("left behind: %+v", w)
	}
}

func TestPlacesAreBoundedForEachOwner(t *testing.T) {
	w := newWaiting(4)
	w.each = 2
	for range 2 {
		if err := w.enter("o"); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.enter("o"); api.CodeOf(err) != api.CodeBusy {
		t.Errorf("a third of one owner: %v", err)
	}
	if err := w.enter("p"); err != nil {
		t.Errorf("another owner: %v", err)
	}
}
