package coordinator

import (
	"sync/atomic"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// behind is a cache that has something happen between the making of a snapshot and
// its use.
type behind struct {
	Cache
	then atomic.Pointer[func()]
}

func (b *behind) Snapshot() *store.Snapshot {
	s := b.Cache.Snapshot()
	if f := b.then.Swap(nil); f != nil {
		(*f)()
	}
	return s
}

// A function may be given a policy, and be called, while the functions are looked
// through: what its route counts by is what is learnt of its replicas, or replicas
// that ended long ago would count for ever, and none be started in their place.
func TestAPolicyThatCameWithinALookIsCountedByWhatIsLearnt(t *testing.T) {
	cache := &behind{}
	_, with := replicated(10)
	w := newWorld(t, 1, with, func(w *world) { cache.Cache, w.cache = w.state, cache })
	set := make(chan *growth, 1)
	then := func() {
		w.policy(api.Pinned(1))
		set <- w.fnRoute().growth
	}
	cache.then.Store(&then)
	w.c.scaler.learn()
	goes := <-set
	if goes == nil || w.c.growths.of(w.fn.Revision, 1) != goes {
		t.Error("the function's route counts its replicas by what nobody learns for")
	}
	for range 3 { // and later looks keep it
		w.c.scaler.learn()
	}
	if w.fnRoute().growth != w.c.growths.of(w.fn.Revision, 1) {
		t.Error("it was dropped later")
	}
}
