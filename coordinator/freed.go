package coordinator

import (
	"slices"
	"sync"
	"time"
)

// freedSlots remembers for a moment at which nodes invocations of one function
// have ended. The mesh tells of a free slot within its own intervals, and until
// then a view shows a full cluster; what waits here need not wait for that. Like
// a view it is a hint: the node decides.
type freedSlots struct {
	mu    sync.Mutex
	slots []freedSlot // oldest first
}

type freedSlot struct {
	peer *peer
	at   time.Time
}

const (
	freedLife = time.Second // by then the mesh has told
	maxFreed  = 256
)

// put notes that an invocation ended at p.
func (f *freedSlots) put(p *peer, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.slots) == maxFreed {
		f.slots = f.slots[:copy(f.slots, f.slots[1:])]
	}
	f.slots = append(f.slots, freedSlot{p, now})
}

// take removes and returns a node with a slot that was freed lately, the latest
// one first, or nil. Nodes in tried are left for others.
func (f *freedSlots) take(tried []string, now time.Time) *peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.slots) - 1; i >= 0; i-- {
		s := f.slots[i]
		if now.Sub(s.at) > freedLife {
			f.slots = f.slots[:copy(f.slots, f.slots[i+1:])] // and all before it
			return nil
		}
		if !slices.Contains(tried, s.peer.id) {
			f.slots = slices.Delete(f.slots, i, i+1)
			return s.peer
		}
	}
	return nil
}
