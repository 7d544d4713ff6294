package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
)

// A node that drains takes nothing new: it says so in its load, and refuses with
// CodeDraining what comes nevertheless, so that coordinators go to their next
// candidate. What runs may end within Config.DrainTimeout. Idle sandboxes are
// stopped at once, for nothing will use them.

// cordonFile, in the state directory, is there while an operator has the node
// drained.
const cordonFile = "drained"

// Drain refuses new invocations, waits for those under way up to DrainTimeout
// and stops all sandboxes. Callers keep the server running meanwhile, so that
// refusals reach coordinators.
func (n *Node) Drain(ctx context.Context) {
	n.mu.Lock()
	n.draining, n.ending = true, true
	n.mu.Unlock()
	n.touch()
	n.empty(ctx, func() bool { return true })
	n.removeAll()
	n.closePool(true)
}

// empty stops sandboxes as they become idle, and those that are not within
// DrainTimeout. It returns early once while, asked under the mutex, does not hold
// any more.
func (n *Node) empty(ctx context.Context, while func() bool) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.DrainTimeout)
	defer cancel()
	for {
		var idle []*sandbox
		inFlight, others := 0, 0
		n.mu.Lock()
		if !while() {
			n.mu.Unlock()
			return
		}
		for _, s := range n.fleet {
			inFlight += s.inFlight
			if s.idle() {
				idle = append(idle, s)
			} else {
				others++
			}
		}
		wait := n.changed
		n.mu.Unlock()
		if len(idle) > 0 {
			n.removeEach(idle, func(s *sandbox) { n.removeIfIdle(s, "node drains") })
			continue
		}
		if others == 0 {
			return
		}
		select {
		case <-wait:
			continue
		case <-ctx.Done():
		}
		n.mu.Lock()
		still := while()
		n.mu.Unlock()
		if !still || n.life.Err() != nil {
			return
		}
		n.log.Warn("drain timed out", "in_flight", inFlight)
		n.note(nil, anomaly.Drained, "failed", map[string]int64{"inflight": int64(inFlight)})
		n.removeAll()
		return
	}
}

// removeAll stops every sandbox.
func (n *Node) removeAll() {
	n.mu.Lock()
	all := make([]*sandbox, 0, len(n.fleet))
	for _, s := range n.fleet {
		all = append(all, s)
	}
	n.mu.Unlock()
	n.removeEach(all, func(s *sandbox) { n.remove(s, "node drains") })
}

// removeEach stops sandboxes, several at a time, and waits.
func (n *Node) removeEach(list []*sandbox, remove func(*sandbox)) {
	var wg sync.WaitGroup
	for _, s := range list {
		wg.Go(func() { remove(s) })
	}
	wg.Wait()
}

// openCordon goes on with a drain that an operator had asked for before the daemon
// was started.
func (n *Node) openCordon() error {
	_, err := os.Stat(n.cordonPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("whether the node is drained: %w", err)
	}
	n.log.Info("the node is drained, by an operator; faasd-sec node undrain has it work again")
	n.setCordon(true)
	return nil
}

func (n *Node) cordonPath() string { return filepath.Join(n.cfg.StateDir, cordonFile) }

// cordon drains the node without an end of the daemon, or has it take work again.
// It outlives the daemon. Both are idempotent.
func (n *Node) cordon(on bool) error {
	n.cordoning.Lock()
	defer n.cordoning.Unlock()
	var err error
	if on {
		err = os.WriteFile(n.cordonPath(), nil, 0o600)
	} else if err = os.Remove(n.cordonPath()); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the node cannot write down whether it is drained")
	}
	n.setCordon(on)
	return nil
}

func (n *Node) setCordon(on bool) {
	n.mu.Lock()
	was := n.cordoned
	if was != on {
		n.cordoned = on
		n.orders++
	}
	order := n.orders
	n.draining = on || n.ending
	n.wake()
	n.mu.Unlock()
	n.touch()
	n.kickPool()
	if was == on {
		return
	}
	n.log.Info("an operator drains the node, or has it work again", "drained", on)
	if on {
		n.note(nil, anomaly.Drained, "requested", nil)
		n.spawn(func() { n.empty(n.life, func() bool { return n.orders == order }) })
	}
}
