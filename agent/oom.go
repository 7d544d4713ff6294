package agent

import (
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// oomWait bounds the question to the node: a caller is waiting for its answer. A node
// that is not there does not take so long, one whose machine is short of memory may.
const oomWait = 5 * time.Second

// oomWatch finds out whether a process was killed for its memory. A sandbox
// sees no cgroup, so the node reads the kernel's counter for it.
type oomWatch struct {
	ask func(api.Control) error

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan int64
	counted int64 // kills that a dead process was already found for
}

func newOOMWatch(ask func(api.Control) error) *oomWatch {
	return &oomWatch{ask: ask, waiting: make(map[uint64]chan int64)}
}

// answer delivers the node's reply.
func (w *oomWatch) answer(o api.OOM) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ch := w.waiting[o.ID]; ch != nil {
		delete(w.waiting, o.ID)
		ch <- o.Kills
	}
}

// killed reports whether there was an OOM kill that no dead process was found
// for yet, and takes it. Without a node to ask it says no: the process did die,
// and saying why wrongly helps nobody.
func (w *oomWatch) killed() bool {
	ch := make(chan int64, 1)
	w.mu.Lock()
	w.next++
	id := w.next
	w.waiting[id] = ch
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.waiting, id)
		w.mu.Unlock()
	}()
	if err := w.ask(api.Control{AskOOM: &api.AskOOM{ID: id}}); err != nil {
		return false
	}
	t := time.NewTimer(oomWait)
	defer t.Stop()
	select {
	case kills := <-ch:
		w.mu.Lock()
		defer w.mu.Unlock()
		if kills > w.counted {
			w.counted++
			return true
		}
	case <-t.C:
	}
	return false
}
