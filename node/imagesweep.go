package node

import (
	"context"
	"maps"
	"time"
)

// sweepTimeout bounds one look at the images, and the letting go of one.
const sweepTimeout = 30 * time.Second

// sweepImages lets images go that no revision known here has used for
// cfg.ImageKeep: those of former revisions would fill the disk.
func (n *Node) sweepImages() {
	tick := time.NewTicker(max(n.cfg.ImageKeep/4, time.Millisecond))
	defer tick.Stop()
	unused := map[string]time.Time{} // since when, by digest
	for {
		select {
		case <-n.life.Done():
			return
		case now := <-tick.C:
			n.sweepOnce(unused, now)
		}
	}
}

// sweepOnce notes which images nothing uses, and forgets those that nothing has
// used for long enough.
func (n *Node) sweepOnce(unused map[string]time.Time, now time.Time) {
	ctx, cancel := context.WithTimeout(n.life, sweepTimeout)
	images, err := n.dep.Runtime.Images(ctx)
	cancel()
	if err != nil {
		return // look says so
	}
	used := n.imagesInUse()
	before := maps.Clone(unused)
	clear(unused)
	for _, d := range images {
		since, known := before[d]
		switch {
		case used[d]:
		case !known:
			unused[d] = now
		case now.Sub(since) < n.cfg.ImageKeep:
			unused[d] = since
		default:
			ctx, cancel := context.WithTimeout(n.life, sweepTimeout)
			err := n.dep.Runtime.Forget(ctx, d)
			cancel()
			if err != nil {
				unused[d] = since
				n.log.Warn("an image that nothing uses stays for now", "image", d, "err", err)
				continue
			}
			n.met.imagesForgotten.Inc()
			n.log.Info("an image that nothing used was let go", "image", d, "unused", now.Sub(since))
			n.touch()
		}
	}
}

// imagesInUse are those of revisions that were told to this node, and of sandboxes.
func (n *Node) imagesInUse() map[string]bool {
	used := map[string]bool{}
	for _, rev := range n.revs.all() {
		used[rev.image] = true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.fleet {
		used[s.rev.image] = true
	}
	return used
}
