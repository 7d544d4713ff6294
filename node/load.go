package node

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	loadEvery = time.Second            // how often what the machine has free is read
	loadPause = 20 * time.Millisecond  // between two publications
	loadFresh = 250 * time.Millisecond // how long replies carry a load along

	imagesPause = 250 * time.Millisecond // between two looks at the images
	imagesMost  = 2 * time.Second        // and while one start follows another
	startQuiet  = 50 * time.Millisecond  // after a sandbox was taken, in which its start has the machine
)

// stampedLoad is the last published load, ready to be sent.
type stampedLoad struct {
	json         string
	at           time.Time
	memAvailable int64     // bytes the machine had left when it was read
	read         time.Time // when that was
	pending      int64     // bytes reserved since
}

// publishLoad tells the mesh what is free, when it changed and every loadEvery.
func (n *Node) publishLoad() {
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	for {
		n.look()
		n.publish()
		select {
		case <-n.life.Done():
			return
		case <-tick.C:
		case <-n.dirty:
			pause := time.NewTimer(loadPause)
			select {
			case <-n.life.Done():
				pause.Stop()
				return
			case <-pause.C:
			}
		}
	}
}

// reclaimable is what a new sandbox could get: what nobody reserved, and what
// the pool and idle sandboxes hold, for admission stops them when it needs their
// room. A
// machine full of functions that nobody calls is not full. mu is held.
func (n *Node) reclaimable() api.Resources {
	free, now := n.ledger.free().Add(overhead(len(n.pool.idle))), time.Now()
	for _, s := range n.fleet {
		if s.spare(now, false) {
			free = free.Add(s.holds)
		}
	}
	return free
}

// survey is what was last read of the machine.
type survey struct {
	free    api.Resources // what procfs and the cgroups said is free
	at      time.Time     // when they were read
	scratch int64         // bytes that the disk of scratch space has left; -1 where nothing tells
	images  []string      // keys, newest first
	listed  time.Time     // when the images were asked for
	busy    bool          // the processors have no time to spare
	short   bool          // of memory
}

// Pressure is the share of time, in percent, that some task on the machine waited
// for a resource lately, as the kernel's pressure stall information has it.
type Pressure struct {
	CPU    float64
	Memory float64
}

// strained reads how hard the machine works: by its pressure where the kernel
// tells, else by its load.
func (n *Node) strained(free api.Resources) (busy, short bool) {
	short = free.Memory > 0 && free.Memory < memorySub
	busy = free.CPU <= 0
	if n.dep.Pressure == nil {
		return busy, short
	}
	p, ok, err := n.dep.Pressure()
	if err != nil {
		n.log.Warn("pressure on the machine", "err", err)
	}
	if err != nil || !ok {
		return busy, short
	}
	return p.CPU > busyCPU, short || p.Memory > shortMem
}

// look reads what takes long to read: the machine every loadEvery, the images
// at most every imagesPause. Calls under way change the load many times in a
// second, and none of these may cost a call of containerd's.
func (n *Node) look() {
	old := n.seen.Load()
	s := survey{}
	if old != nil {
		s = *old
	}
	if time.Since(s.at) >= loadEvery {
		free, err := n.dep.Free()
		if err != nil {
			n.log.Warn("free resources of the machine", "err", err)
		} else {
			s.free, s.at = free, time.Now()
			s.busy, s.short = n.strained(free)
		}
		s.scratch = -1
		if n.dep.ScratchFree != nil {
			if s.scratch, err = n.dep.ScratchFree(); err != nil {
				n.log.Warn("free room of the scratch disk", "err", err)
				s.scratch = 0
			}
		}
		n.clockSteady()
		n.revs.weigh()
	}
	if since := time.Since(s.listed); since < imagesPause || since < imagesMost && n.startsNow() {
		n.seen.Store(&s)
		return
	}
	s.listed = time.Now()
	images, err := n.dep.Runtime.Images(n.life)
	switch {
	case err == nil:
		if len(images) > 16 {
			images = images[:16]
		}
		s.images = nil
		for _, d := range images {
			s.images = append(s.images, api.ImageKey(d))
		}
	case n.life.Err() == nil:
		n.log.Warn("list images", "err", err)
	}
	n.seen.Store(&s)
}

// startsNow reports whether some sandbox is on its way to its first call.
func (n *Node) startsNow() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(n.pool.taken) < startQuiet
}

// maxHosts bounds NodeLoad.Hosts.
const maxHosts = 16

// hosts are revisions of which sandboxes run here, or start, and none is in warm by
// the revision's name, for it has needs of its own or no slot free: those first that
// want no other sandbox of the function beside them. mu is held.
func (n *Node) hosts(warm map[string]int) []string {
	apart := map[string]bool{}
	for _, s := range n.fleet {
		if s.state < stopping && warm[api.RevisionKey(s.rev.digest)] == 0 {
			key := api.HostKey(s.rev.digest)
			apart[key] = apart[key] || s.rev.needs().Apart
		}
	}
	list := slices.Collect(maps.Keys(apart))
	slices.SortFunc(list, func(a, b string) int {
		if apart[a] != apart[b] {
			if apart[a] {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return list[:min(len(list), maxHosts)]
}

// publish sends one load: what was last read of the machine and what the node
// itself knows, as it is now.
func (n *Node) publish() {
	s := n.seen.Load()
	if s == nil {
		return
	}
	machine, read := s.free, s.at
	n.publishing.Lock() // so that what is sent last is what is newest
	defer n.publishing.Unlock()
	n.mu.Lock()
	l := api.NodeLoad{Node: n.cfg.ID, Free: n.reclaimable(), Warm: map[string]int{}, Running: len(n.fleet), Pooled: len(n.pool.idle), Draining: n.draining, Images: s.images}
	// Reserved memory that its sandboxes do not use yet is not free, although
	// the machine still has it.
	if machine.Memory > 0 {
		l.Free.Memory = min(l.Free.Memory, machine.Memory)
	}
	if l.Free.Scratch > 0 && s.scratch >= 0 {
		l.Free.Scratch = min(l.Free.Scratch, s.scratch)
	}
	if machine.PIDs > 0 {
		l.Free.PIDs = min(l.Free.PIDs, machine.PIDs)
	}
	for _, s := range n.fleet {
		l.InFlight += s.inFlight
		if (s.state == ready || s.state == frozen) && !s.retiring && s.inFlight < s.rev.slots {
			l.Warm[s.rev.warmKey()] += s.rev.slots - s.inFlight
		}
	}
	l.Hosts = n.hosts(l.Warm)
	n.mu.Unlock()
	stamped, err := n.dep.Mesh.SetLoad(l)
	if err != nil {
		n.log.Error("publish load", "err", err)
		return
	}
	b, err := json.Marshal(stamped)
	if err != nil {
		n.log.Error("encode load", "err", err)
		return
	}
	n.mu.Lock()
	now := &stampedLoad{json: string(b), at: time.Now(), memAvailable: machine.Memory, read: read}
	if old := n.load.Load(); old != nil && old.read.Equal(read) {
		now.pending = old.pending // the machine was not asked since
	}
	n.load.Store(now)
	n.mu.Unlock()
}
