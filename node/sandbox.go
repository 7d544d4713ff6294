package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// state of a sandbox. It only moves down this list, but between ready and frozen.
type state int

const (
	starting state = iota
	ready
	frozen // every process of it stands still; the next call thaws it
	stopping
	dead
)

func (s state) String() string {
	return [...]string{"starting", "ready", "frozen", "stopping", "dead"}[s]
}

// sandbox is one sandbox of a revision. The node's mutex guards what has no
// other guard named.
type sandbox struct {
	id       string // of its box; drawn while it has none
	rev      *revision
	holds    api.Resources // what it has reserved of the ledger
	ports    []Port        // of the host, that it has
	cores    []int         // of the machine, that no other sandbox is pinned to
	began    time.Time
	readyAt  time.Time
	up       *relay.Upstream // set before it is ready
	evidence string          // type that its keys were released for
	way      string          // api.StartPooled or api.StartPlain, once known
	why      string          // why it is not pooled, or had to wait
	hit      bool            // it found a box waiting

	state    state
	retiring bool // takes no new invocations; those under way may end
	inFlight int
	lastUsed time.Time

	heldUntil time.Time // until then it is kept, used or not
	firm      bool      // while it is held, it makes no room for others
	lastErr   string
	exited    bool               // its function's end is in the anomaly log
	abort     context.CancelFunc // ends its start; nil once that is over or for an adopted one

	skew    time.Duration // of this machine's clock and the coordinator's that it starts for
	phases  []phase       // of its start, where they are traced
	waiting []byte        // the grant of the invocation that it starts for, if there is one
	told    chan struct{} // closed once a load that counts it was published

	claimed     *box               // taken off the pool when it was admitted, for want of room
	box         *box               // set by the start, under the mutex
	unfreezable bool               // it was tried in vain
	unfreeze    context.CancelFunc // ends the freezing under way; set while frozen
	melting     chan struct{}      // closed when the thaw under way is over
	frost       sync.Mutex         // held while the runtime freezes or thaws it
	iced        bool               // guarded by frost: the runtime has it frozen

	brought chan struct{} // closed once bringUp will touch it no more
	settled chan struct{} // closed once ready, or dead without having been
	failure error         // set before settled closes without ready
	gone    chan struct{} // closed once everything of it is removed
}

// newSandbox makes the entry of a sandbox that is about to start. The caller
// holds n.mu and has reserved what it holds.
func (n *Node) newSandbox(rev *revision, id string) *sandbox {
	now := time.Now()
	s := &sandbox{
		id: id, rev: rev, holds: need(rev.limits), began: now, lastUsed: now,
		told: make(chan struct{}), brought: make(chan struct{}), settled: make(chan struct{}), gone: make(chan struct{}),
	}
	n.enlist(s)
	return s
}

// enlist and delist put s into the node's lists under its id, and take it out.
// mu is held.
func (n *Node) enlist(s *sandbox) {
	n.fleet[s.id] = s
	if n.byRev[s.rev.key()] == nil {
		n.byRev[s.rev.key()] = map[string]*sandbox{}
	}
	n.byRev[s.rev.key()][s.id] = s
}

func (n *Node) delist(s *sandbox) {
	delete(n.fleet, s.id)
	delete(n.byRev[s.rev.key()], s.id)
	if len(n.byRev[s.rev.key()]) == 0 {
		delete(n.byRev, s.rev.key())
	}
}

// give makes b the box of s, under whose id it is known from now on. mu is held.
func (n *Node) give(s *sandbox, b *box) {
	n.delist(s)
	s.id = b.id
	n.enlist(s)
	s.box = b
	b.owner.Store(s)
}

// newSandboxID draws an id of 20 characters.
func newSandboxID() string {
	var b [9]byte
	_, _ = rand.Read(b[:]) // never fails
	return "s-" + hex.EncodeToString(b[:])
}

// isSandboxID reports whether newSandboxID may have drawn id.
func isSandboxID(id string) bool {
	number, ok := strings.CutPrefix(id, "s-")
	b, err := hex.DecodeString(number)
	return ok && err == nil && len(b) == 9
}

// runtime is what the runtime knows s by, nil while it has no box.
func (n *Node) runtimeOf(s *sandbox) runtime.Sandbox {
	n.mu.Lock()
	b := s.box
	n.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.runtime()
}

// imageRef is where to pull a revision's image: in the cluster's registry
// unless it names another.
func (n *Node) imageRef(rev *revision) string {
	if api.NamesRegistry(rev.rec.ImageRef) {
		return rev.rec.ImageRef
	}
	return n.cfg.Registry + "/" + api.Repository(rev.rec.ImageRef)
}

// startError keeps an error that has a code and gives others CodeStartFailed.
func startError(err error, message string) error {
	if api.CodeOf(err) != api.CodeInternal {
		return err
	}
	return api.Wrap(api.CodeStartFailed, err, message)
}

// agentUpstream reaches the agent over its HTTP socket.
func (n *Node) agentUpstream(b *box) *relay.Upstream {
	o := relay.DefaultOptions()
	o.First = b.takeNear
	return relay.NewUpstream(n.life, b.dialAgent, o)
}

// fail keeps why s does not start, for the invocations that wait for it: the
// first reason counts.
func (n *Node) fail(s *sandbox, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.state == starting && s.failure == nil {
		s.failure = err
	}
}

// removeFor removes s for an error.
func (n *Node) removeFor(s *sandbox, err error) {
	n.fail(s, err)
	n.remove(s, err.Error())
}

// remove stops s and gives back what it held. It is idempotent, and returns
// when s is gone.
func (n *Node) remove(s *sandbox, why string) {
	n.removeIf(s, why, func() bool { return true })
}

// removeIfIdle stops s unless it is not idle any more.
func (n *Node) removeIfIdle(s *sandbox, why string) {
	n.removeIf(s, why, s.idle)
}

// idle reports whether s serves nobody but could. The node's mutex is held.
func (s *sandbox) idle() bool { return (s.state == ready || s.state == frozen) && s.inFlight == 0 }

// removeIf stops s if cond, asked under the mutex, still holds: from then on no
// invocation gets a slot in it.
func (n *Node) removeIf(s *sandbox, why string, cond func() bool) {
	n.mu.Lock()
	if s.state >= stopping {
		n.mu.Unlock()
		<-s.gone
		return
	}
	if !cond() {
		n.mu.Unlock()
		return
	}
	settled := s.state != starting
	if s.state == frozen {
		s.unfreeze()
	}
	s.state = stopping
	if s.abort != nil {
		s.abort()
	}
	if s.lastErr == "" {
		s.lastErr = why
	}
	if !settled {
		if s.failure == nil {
			s.failure = api.Errorf(api.CodeStartFailed, "%s", why)
		}
		close(s.settled)
	}
	n.mu.Unlock()
	n.touch()

	// A start under way must not make anything after we looked.
	<-s.brought
	n.mu.Lock()
	b := s.box
	n.mu.Unlock()
	gone := true
	if b != nil {
		grace := n.cfg.StopGrace
		if err := n.letGo(s); err != nil {
			grace = 0 // it cannot hear
		}
		b.tell(api.Control{Stop: &api.Stop{GraceMs: grace.Milliseconds()}})
		gone = n.dropBox(b, grace)
	}
	n.bury(s, gone)
	if !gone {
		n.outlive(b, func() { n.giveBack(s) })
	}
}

// bury ends the bookkeeping of s.
func (n *Node) bury(s *sandbox, release bool) {
	if s.up != nil {
		s.up.Close()
	}
	n.mu.Lock()
	s.state = dead
	n.delist(s)
	if release {
		n.giveBack(s)
	}
	n.past = append(n.past, n.status(s))
	if len(n.past) > 256 {
		n.past = append(n.past[:0:0], n.past[len(n.past)-128:]...)
	}
	n.wake()
	n.mu.Unlock()
	close(s.gone)
	n.touch()
	n.kickPool()
}

// giveBack ends the reservation of s. mu is held.
func (n *Node) giveBack(s *sandbox) {
	n.bound.drop(s.ports) // before anybody else is lent them
	n.ledger.release(s.holds)
	s.holds = api.Resources{}
	n.ports.release(s)
	n.cores.release(s)
}

// cleanupContext outlives the node's own end: removal must finish during it.
func cleanupContext(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// status describes s. The caller holds n.mu.
func (n *Node) status(s *sandbox) api.SandboxStatus {
	st := api.SandboxStatus{
		ID: s.id, Node: n.cfg.ID, Function: s.rev.name, Revision: s.rev.digest, State: s.state.String(),
		Start: s.way, StartWhy: s.why, InFlight: s.inFlight, StartedAt: s.began.UnixMilli(), Evidence: s.evidence, LastError: s.lastErr,
	}
	if !s.readyAt.IsZero() {
		st.StartMs = s.readyAt.Sub(s.began).Milliseconds()
	}
	return st
}

// pidOf reads from a pidfd which process it is, as this process's pid
// namespace numbers it (proc_pid_fdinfo(5)).
func pidOf(pidfd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, fmt.Errorf("launcher's pidfd: %w", err)
	}
	for line := range lines(b) {
		var pid int
		if _, err := fmt.Sscanf(line, "Pid:\t%d", &pid); err == nil && pid > 0 {
			return pid, nil
		}
	}
	return 0, errors.New("launcher's pidfd: no such process here")
}
