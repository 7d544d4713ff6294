package opener

import (
	"context"
	"runtime"
	"time"
)

// EraseWithin is how long after a reply nothing of its secrets is left in
// memory, on a machine that is not overloaded. It needs a binary built with
// GOEXPERIMENT=runtimesecret, as the Makefile builds it; see Erases.
const EraseWithin = 100 * time.Millisecond

// eraseEvery spaces the collections, so that many openings share one.
const eraseEvery = 20 * time.Millisecond

// eraser collects garbage after openings: what was allocated in them is erased
// when it is freed.
type eraser struct{ due chan struct{} }

func newEraser() *eraser { return &eraser{due: make(chan struct{}, 1)} }

// want asks for a collection after now; it never waits.
func (e *eraser) want() {
	select {
	case e.due <- struct{}{}:
	default: // one is asked for already, and has not begun
	}
}

// run collects until ctx ends.
func (e *eraser) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.due:
		}
		runtime.GC() // returns when all that is dead was swept, and so erased
		timer.Reset(eraseEvery)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}
