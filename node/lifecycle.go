package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// recover adopts the sandboxes that outlived an earlier life of the daemon and
// removes those it cannot use.
func (n *Node) recover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	running, err := n.dep.Runtime.Recover(ctx)
	if err != nil {
		return err
	}
	type try struct {
		s    *sandbox
		done <-chan error
	}
	var tries []try
	type adopted struct {
		s        *sandbox
		b        *box
		rt       runtime.Sandbox
		distinct bool // nobody else has its ports or cores
	}
	var found []adopted
	var live []Fitted
	for _, rt := range running {
		info := rt.Info()
		digest, _, _ := strings.Cut(info.Revision, ":")
		rev, ok := n.revs.get(digest)
		var had reserved
		if ok {
			var err error
			if rev, had, err = n.revive(rev, info.Revision, info.Reserved); err != nil {
				n.log.Info("sandbox cannot be adopted", "sandbox", info.ID, "function", info.Function, "err", err)
				ok = false
			}
		}
		if !ok {
			n.log.Info("sandbox of an unknown revision is removed", "sandbox", info.ID, "function", info.Function)
			if err := removePatiently(ctx, rt, n.cfg.StopGrace); err != nil {
				return fmt.Errorf("remove %s: %w", info.ID, err)
			}
			continue
		}
		b := newBox(info.ID, info.SocketDir)
		b.rt, b.admitted = rt, true
		n.mu.Lock()
		n.boxes[b.id] = b
		n.ledger.force(need(rev.limits))
		s := n.newSandbox(rev, info.ID)
		n.give(s, b)
		s.began, s.way, s.up = info.CreatedAt, info.Start, n.agentUpstream(b)
		distinct := n.ports.adopt(s, had.Ports) && n.cores.adopt(s, had.Cores)
		b.fitted = n.fittings.of(rev.limits)
		live = append(live, s.fitted(rt))
		n.mu.Unlock()
		close(s.brought)
		close(s.told) // by the first load of this life
		found = append(found, adopted{s, b, rt, distinct})
	}
	// Before anything is removed: what a sandbox is fitted with goes with it.
	for _, fit := range n.fittings {
		var own []Fitted
		for _, f := range live {
			if slices.Contains(n.fittings.of(f.Needs.Resources), fit) {
				own = append(own, f)
			}
		}
		if err := fit.Recover(ctx, own); err != nil {
			return fmt.Errorf("recover what sandboxes were fitted with: %w", err)
		}
	}
	for _, a := range found {
		s, b, rt := a.s, a.b, a.rt
		// A frozen agent could not dial.
		err := rt.Thaw(ctx)
		if _, berr := n.bound.bind(s.ports); a.distinct && berr != nil {
			n.log.Warn("another program came to a port that a sandbox has; what comes in by it is the sandbox's", "sandbox", s.id, "err", berr)
		}
		if !a.distinct {
			err = api.Errorf(api.CodeStartFailed, "another sandbox has a port or a core of it")
		}
		if err == nil {
			err = b.listen()
		}
		if err != nil {
			n.remove(s, err.Error())
			continue
		}
		n.watch(b, rt)
		tries = append(tries, try{s, b.outcome})
	}
	// Agents dial again within 100 ms; one that was still starting is not
	// worth waiting for.
	deadline := time.After(3 * time.Second)
	for _, t := range tries {
		select {
		case err = <-t.done:
		case <-deadline:
			err = api.Errorf(api.CodeStartFailed, "its agent did not report")
			deadline = time.After(0)
		}
		if err != nil {
			n.remove(t.s, err.Error())
			continue
		}
		n.mu.Lock()
		if t.s.state == starting {
			t.s.state, t.s.readyAt, t.s.lastUsed = ready, time.Now(), time.Now()
			t.s.evidence = "released before the daemon restarted"
			close(t.s.settled)
		}
		n.mu.Unlock()
		n.log.Info("sandbox adopted", "sandbox", t.s.id, "function", t.s.rev.name)
	}
	n.sweepSockets()
	return nil
}

// sweepSockets removes the socket directories of sandboxes that the runtime never
// heard of: an earlier life of the daemon was killed between the two.
func (n *Node) sweepSockets() {
	entries, err := os.ReadDir(n.cfg.RunDir)
	if err != nil {
		n.log.Warn("socket directories of an earlier life", "err", err)
		return
	}
	for _, e := range entries {
		n.mu.Lock()
		known := n.boxes[e.Name()] != nil
		n.mu.Unlock()
		if known || !isSandboxID(e.Name()) {
			continue
		}
		if err := os.RemoveAll(n.boxDir(e.Name())); err != nil {
			n.log.Warn("socket directory stays behind", "sandbox", e.Name(), "err", err)
		}
	}
}

// watchEvents acts on what the runtime reports until the runtime is closed or
// the node ends.
func (n *Node) watchEvents() {
	events := n.dep.Runtime.Events()
	for {
		select {
		case <-n.life.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			n.handle(e)
		}
	}
}

func (n *Node) handle(e runtime.Event) {
	n.mu.Lock()
	b := n.boxes[e.ID]
	if b == nil {
		n.mu.Unlock()
		return
	}
	ended := fmt.Sprintf("the sandbox ended with exit code %d", e.ExitCode)
	s := b.owner.Load()
	if s == nil || s.box != b {
		n.mu.Unlock()
		if e.Kind == runtime.EventExit {
			n.met.events.WithLabelValues(string(e.Kind)).Inc()
			n.lose(b, api.Errorf(api.CodeStartFailed, "%s", ended))
		}
		return
	}
	switch e.Kind {
	case runtime.EventOOM:
		s.lastErr = string(api.CodeOOMKilled) + ": the function passed its memory limit"
	case runtime.EventPIDsLimit:
		if s.lastErr == "" {
			s.lastErr = "pids_limit: the function reached its limit of processes"
		}
	}
	gone, begun := e.Kind == runtime.EventExit && s.state < stopping, s.state != starting
	n.mu.Unlock()
	n.met.events.WithLabelValues(string(e.Kind)).Inc()
	n.noteEvent(s, e, gone)
	n.log.Info("sandbox event", "kind", e.Kind, "sandbox", e.ID, "function", s.rev.name, "exit_code", e.ExitCode)
	switch {
	case gone && begun:
		n.spawn(func() { n.remove(s, ended) })
	case gone: // the start decides what becomes of it
		b.spoil(api.Errorf(api.CodeStartFailed, "%s", ended))
	}
}
