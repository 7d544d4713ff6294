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

// rounds is how many collections follow a call. The SM2 library keeps a form of
// the private key in a cache that lets go of it in a clean-up, which runs after
// one collection: the next one erases it.
const rounds = 2

// run collects until ctx ends.
func (e *eraser) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for left := 0; ; {
		if left == 0 {
			select {
			case <-ctx.Done():
				return
			case <-e.due:
				left = rounds
			}
		}
		runtime.GC() // returns when all that is dead was swept, and so erased
		left--
		timer.Reset(eraseEvery)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		select {
		case <-e.due:
			left = rounds
		default:
		}
	}
}
