package node

import (
	"fmt"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// The second check looks again, right before a function may run, at what the node
// went by when it admitted it: some of it is seconds old by then, or was never
// the node's to decide. What does not hold any more refuses the start with
// CodeSecondCheck: nothing was opened, and the coordinator goes to its next
// candidate.

// checkRoom looks at what the machine has and can do now, before the sandbox uses
// any of it: while its image is mounted, since the kernel takes a moment to say.
func (n *Node) checkRoom(s *sandbox) error {
	l := s.rev.limits
	left := n.dep.Left
	if left == nil {
		left = n.dep.Free
	}
	free, err := left()
	switch {
	case err != nil:
		return n.failCheck(s, "memory", err, "what the machine has free cannot be read")
	case free.Memory > 0 && free.Memory < l.Memory:
		return n.failCheck(s, "memory", nil, "the machine has not the memory any more")
	case free.PIDs > 0 && free.PIDs < l.PIDs:
		return n.failCheck(s, "pids", nil, "the machine has not the pids any more")
	}
	if n.dep.Kernel != nil {
		if err := n.dep.Kernel(); err != nil {
			return n.failCheck(s, "kernel", err, "the kernel lacks what it had when the daemon started")
		}
	}
	if l.Scratch == 0 {
		return nil
	}
	if n.dep.ScratchFree == nil {
		return n.failCheck(s, "disk", nil, "nothing tells what the scratch disk has free")
	}
	disk, err := n.dep.ScratchFree()
	if err != nil {
		return n.failCheck(s, "disk", err, "what the scratch disk has free cannot be read")
	}
	if disk < l.Scratch {
		return n.failCheck(s, "disk", nil, "the scratch disk has not the room any more")
	}
	return nil
}

// checkPromise is the last thing before the function may run: image, agent and
// clock are what they were when they were verified.
func (n *Node) checkPromise(s *sandbox, b *box, img runtime.Image) error {
	if img.Digest != s.rev.image {
		return n.failCheck(s, "image", nil, "the image is not the one that the owner signed")
	}
	// A box of an earlier agent is not made any function's: its evidence would
	// name another digest. One that was adopted has none to compare.
	if now, err := n.agent.current(); err != nil || b.agent != (agentFile{}) && now != b.agent {
		return n.failCheck(s, "agent", err, "the agent's binary is not the one that was measured")
	}
	if !n.clockSteady() {
		return n.failCheck(s, "clock", nil, "the machine's clock was set, or stood, a moment ago")
	}
	if s.skew > maxSkew || s.skew < -maxSkew {
		return n.failCheck(s, "clock", nil, fmt.Sprintf("the machine's clock and the coordinator's are more than %v apart", maxSkew))
	}
	return nil
}

// failCheck notes a failed second check and makes its refusal. what is a code of
// anomaly.SecondCheckFailed.
func (n *Node) failCheck(s *sandbox, what string, cause error, message string) error {
	n.met.checks.WithLabelValues(what).Inc()
	if n.dep.Anomaly != nil {
		n.mu.Lock()
		id := s.id
		n.mu.Unlock()
		e := anomaly.Event{Kind: anomaly.SecondCheckFailed, Node: n.cfg.ID, Function: string(s.rev.name), Sandbox: id, Code: what}
		if rev, err := sealed.ParseDigest(s.rev.digest); err == nil {
			e.Revision = rev
		}
		n.dep.Anomaly.Append(e)
	}
	return &api.Error{Code: api.CodeSecondCheck, Field: what, Message: message, Err: cause}
}

// maxSkew is how far the clocks of a node and of the coordinator that starts
// something there may be apart. It is well below what envelopes bear
// (sealed.MaxClockLead), and far above what a request takes on its way.
const maxSkew = 10 * time.Second

const (
	clockLeap  = 2 * time.Second  // wall clock against monotonic, within clockDoubt: more is no slewing
	clockDoubt = 15 * time.Second // how long after a leap nothing is started
)

// clock watches the wall clock by the monotonic one. Windows of grants, messages
// and certificates are judged by the former; a machine that was asleep, or whose
// clock was just set, is not believed for a moment.
type clock struct {
	mu      sync.Mutex
	wall    time.Time     // of the reading that it is judged by
	mono    time.Duration // of the same, since the daemon started
	read    bool
	leapt   bool
	leaptAt time.Duration
}

// steady reports whether the clock has gone evenly of late: wall is what it shows
// now, and mono how long the daemon has run by the monotonic one.
func (c *clock) steady(wall time.Time, mono time.Duration) bool {
	wall = wall.Round(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch d := wall.Sub(c.wall) - (mono - c.mono); {
	case !c.read:
		c.wall, c.mono, c.read = wall, mono, true
	case d > clockLeap || d < -clockLeap:
		c.leapt, c.leaptAt = true, mono
		c.wall, c.mono = wall, mono
	case mono-c.mono >= clockDoubt: // slewing adds up: it is judged by the piece
		c.wall, c.mono = wall, mono
	}
	return !c.leapt || mono-c.leaptAt >= clockDoubt
}

// clockSteady asks the clock now.
func (n *Node) clockSteady() bool {
	now := time.Now()
	return n.clock.steady(now, now.Sub(n.started))
}
