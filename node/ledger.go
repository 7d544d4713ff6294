package node

import (
	"github.com/faasd-sec/faasd-sec/api"
)

// ledger adds up reservations exactly. It does no locking: the node's mutex
// makes check and reservation one step.
type ledger struct {
	capacity api.Resources
	reserved api.Resources
}

// need is what a sandbox of limits takes: the function's limits and the
// agent's overhead.
func need(limits api.Resources) api.Resources { return limits.Add(api.AgentOverhead()) }

// reserve takes r, or names what is lacking and takes nothing.
func (l *ledger) reserve(r api.Resources) (lacking string) {
	if lacking = r.Lacks(l.capacity.Sub(l.reserved)); lacking == "" {
		l.reserved = l.reserved.Add(r)
	}
	return lacking
}

// force takes r even beyond capacity: for sandboxes that run already when the
// daemon starts with a smaller capacity than before.
func (l *ledger) force(r api.Resources) { l.reserved = l.reserved.Add(r) }

// release gives r back.
func (l *ledger) release(r api.Resources) { l.reserved = l.reserved.Sub(r) }

// free is what may still be reserved, never negative.
func (l *ledger) free() api.Resources {
	f := l.capacity.Sub(l.reserved)
	for _, v := range []*int64{&f.CPU, &f.Memory, &f.PIDs, &f.Scratch, &f.Ingress, &f.Egress, &f.Ports, &f.Cores} {
		*v = max(*v, 0)
	}
	return f
}
