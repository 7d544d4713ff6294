package node

import (
	"context"
	"fmt"
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
	found, err := n.dep.Runtime.Recover(ctx)
	if err != nil {
		return err
	}
	type try struct {
		s    *sandbox
		done chan error
	}
	var tries []try
	for _, rt := range found {
		info := rt.Info()
		digest, _, _ := strings.Cut(info.Revision, ":")
		rev, ok := n.revs.get(digest)
		if !ok || rev.key() != info.Revision {
			n.log.Info("sandbox of an unknown revision is removed", "sandbox", info.ID, "function", info.Function)
			if err := rt.Remove(ctx, n.cfg.StopGrace); err != nil {
				return fmt.Errorf("remove %s: %w", info.ID, err)
			}
			continue
		}
		n.mu.Lock()
		n.ledger.force(need(rev.limits))
		s := n.newSandbox(rev, info.ID)
		n.mu.Unlock()
		s.dir, s.rt, s.began = info.SocketDir, rt, info.CreatedAt
		close(s.brought)
		if err := n.listen(s); err != nil {
			n.remove(s, "its control socket could not be made again")
			continue
		}
		s.up = n.agentUpstream(s)
		t := try{s, make(chan error, 1)}
		n.spawn(func() { n.serveControl(s, t.done) })
		tries = append(tries, t)
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
	return nil
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
	s := n.fleet[e.ID]
	if s == nil {
		n.mu.Unlock()
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
	ended := e.Kind == runtime.EventExit && s.state < stopping
	n.mu.Unlock()
	n.met.events.WithLabelValues(string(e.Kind)).Inc()
	n.log.Info("sandbox event", "kind", e.Kind, "sandbox", e.ID, "function", s.rev.name, "exit_code", e.ExitCode)
	if ended {
		n.spawn(func() { n.remove(s, "the sandbox ended with exit code "+itoa(int(e.ExitCode))) })
	}
}

// reapIdle scales to zero: it stops sandboxes that nobody used for their idle time.
func (n *Node) reapIdle() {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-n.life.Done():
			return
		case now := <-tick.C:
			n.mu.Lock()
			var idle []*sandbox
			for _, s := range n.fleet {
				if s.state == ready && s.inFlight == 0 && now.Sub(s.lastUsed) >= s.rev.idle {
					idle = append(idle, s)
				}
			}
			n.mu.Unlock()
			for _, s := range idle {
				n.spawn(func() { n.removeIfIdle(s, "idle") })
			}
		}
	}
}
