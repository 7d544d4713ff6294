package agent

import (
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/nbio"
)

// callerCheck is how often an invocation that takes long looks whether anybody
// still waits for it.
const callerCheck = 400 * time.Millisecond

// onAbort says how the function's work on the invocation is ended early.
func (inv *invocation) onAbort(f func()) { inv.abort.Store(&f) }

// checkCaller ends the work on an invocation whose connection was closed: the
// function's time is the owner's to pay for. A connection of which only the
// sending half was closed still waits for its reply.
func (inv *invocation) checkCaller() {
	raw := nbio.Socket(inv.conn)
	if raw == nil || inv.released.Load() {
		return
	}
	p, err := nbio.Look(raw)
	if err != nil {
		return // released meanwhile
	}
	if !p.Gone {
		inv.watch.Reset(callerCheck)
		return
	}
	inv.gone.Store(true)
	if abort := inv.abort.Load(); abort != nil {
		(*abort)()
	}
}

// cutShort notes that a reply broke off, unless nobody was there to have it.
func (inv *invocation) cutShort(err error) {
	if e := inv.explain(err); e.Code != api.CodeCallerGone {
		inv.f.logs.platform("a reply was cut short: %v", e)
	}
}
