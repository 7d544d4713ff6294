package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// The parts of a sandbox that a Fitting can give it, as in api.Resources.
const (
	PartScratch = "scratch"
	PartIngress = "ingress"
	PartEgress  = "egress"
	PartPorts   = "ports"
	PartCores   = "cores"
)

// Fitting gives sandboxes what the runtime does not: a network, a disk. It
// enforces what it gives.
//
// A node calls Attach once the sandbox is made and its limits are written, and
// before anything of the function may run; only for sandboxes that need one of
// its Parts. Detach follows when nothing of the sandbox runs any more, also where
// Attach failed half-way or never came to begin: it is idempotent, and finds what
// to do by the sandbox's id alone. Both have a deadline.
type Fitting interface {
	// Parts are those of the Part constants that it gives.
	Parts() []string
	Attach(ctx context.Context, f Fitted) error
	Detach(ctx context.Context, id string) error
	// Recover is called once, before any other: live are the sandboxes with needs
	// of its Parts that outlived an earlier life of the daemon. It takes them
	// over and removes what is left of all others.
	Recover(ctx context.Context, live []Fitted) error
}

// Examiner is a Fitting that may refuse needs of its Parts before anything is made
// for them: with CodeNoRoom where another node may meet them.
type Examiner interface {
	Examine(needs api.Needs) error
}

// Fitted is a sandbox as a Fitting sees it.
type Fitted struct {
	ID       string
	Function api.FunctionName
	Needs    api.Needs // settled, without what is one task's alone
	Ports    []Port    // of the host, that it holds
	Cores    []int     // of the machine, that no other sandbox is pinned to
	PID      int       // of its init process, as the host sees it: its namespaces
	Sandbox  runtime.Sandbox
}

// fittings are a node's, each part given by one of them.
type fittings []Fitting

// newFittings refuses two that give the same part.
func newFittings(list []Fitting) (fittings, error) {
	given := map[string]bool{}
	for _, f := range list {
		for _, p := range f.Parts() {
			if !slices.Contains([]string{PartScratch, PartIngress, PartEgress, PartPorts, PartCores}, p) || given[p] {
				return nil, api.Invalid("fittings", "configure one for each part", fmt.Sprintf("%q is unknown, or given twice", p))
			}
			given[p] = true
		}
	}
	return list, nil
}

// amounts are what r asks of each part.
func amounts(r api.Resources) map[string]int64 {
	return map[string]int64{PartScratch: r.Scratch, PartIngress: r.Ingress, PartEgress: r.Egress, PartPorts: r.Ports, PartCores: r.Cores}
}

// cover refuses settled needs of a part that nothing here gives, or not so.
func (l fittings) cover(needs api.Needs) error {
	r := needs.Resources
	if r.Scratch|r.Ingress|r.Egress|r.Ports|r.Cores == 0 {
		return nil
	}
	for part, amount := range amounts(r) {
		if amount > 0 && !slices.ContainsFunc(l, func(f Fitting) bool { return slices.Contains(f.Parts(), part) }) {
			return api.Errorf(api.CodeNoRoom, "not enough %s: this node gives none", part)
		}
	}
	for _, f := range l.of(r) {
		if e, ok := f.(Examiner); ok {
			if err := e.Examine(needs); err != nil {
				return err
			}
		}
	}
	return nil
}

// Lends is what a node with cfg and these fittings lends: cfg's capacity without what
// nothing gives. It is what the mesh is to hear of.
func Lends(cfg Config, list []Fitting) (api.Resources, error) {
	l, err := newFittings(list)
	if err != nil {
		return api.Resources{}, err
	}
	return l.lent(cfg.counted()), nil
}

// counted is the capacity with what is lent piece by piece.
func (cfg Config) counted() api.Resources {
	c := cfg.Capacity
	c.Ports, c.Cores = 2*int64(cfg.Ports.Len()), int64(len(cfg.Cores))
	return c
}

// lent is capacity without the parts that nothing gives.
func (l fittings) lent(capacity api.Resources) api.Resources {
	for _, part := range []struct {
		name   string
		amount *int64
	}{{PartScratch, &capacity.Scratch}, {PartIngress, &capacity.Ingress}, {PartEgress, &capacity.Egress}, {PartPorts, &capacity.Ports}, {PartCores, &capacity.Cores}} {
		if !slices.ContainsFunc(l, func(f Fitting) bool { return slices.Contains(f.Parts(), part.name) }) {
			*part.amount = 0
		}
	}
	return capacity
}

// of are those that r needs.
func (l fittings) of(r api.Resources) (out fittings) {
	if len(l) == 0 || r.Scratch|r.Ingress|r.Egress|r.Ports|r.Cores == 0 {
		return nil
	}
	asked := amounts(r)
	for _, f := range l {
		if slices.ContainsFunc(f.Parts(), func(p string) bool { return asked[p] > 0 }) {
			out = append(out, f)
		}
	}
	return out
}

// fitted is s as Fittings see it. mu is held.
func (s *sandbox) fitted(rt runtime.Sandbox) Fitted {
	return Fitted{ID: rt.ID(), Function: s.rev.name, Needs: s.rev.needs(), Ports: slices.Clone(s.ports), Cores: slices.Clone(s.cores), PID: rt.Info().PID, Sandbox: rt}
}

// attach has s fitted with what its needs ask for beyond the runtime's. What was
// begun is noted in the box, whose removal detaches it.
func (n *Node) attach(ctx context.Context, s *sandbox, b *box) error {
	list := n.fittings.of(s.rev.limits)
	if len(list) == 0 {
		return nil
	}
	n.mu.Lock()
	f := s.fitted(b.runtime())
	n.mu.Unlock()
	for _, fit := range list {
		b.mu.Lock()
		b.fitted = append(b.fitted, fit)
		b.mu.Unlock()
		if err := fit.Attach(ctx, f); err != nil {
			return startError(err, "the sandbox could not be given what its task needs")
		}
	}
	return nil
}

// detach takes from a box what attach gave it, last first. Nothing of the box
// runs any more. What could not be detached may be called for again.
func (b *box) detach(ctx context.Context) error {
	b.mu.Lock()
	list := b.fitted
	b.fitted = nil
	b.mu.Unlock()
	var errs error
	var left []Fitting
	for _, fit := range slices.Backward(list) {
		if err := fit.Detach(ctx, b.id); err != nil {
			errs = errors.Join(errs, err)
			left = append(left, fit)
		}
	}
	if errs != nil {
		slices.Reverse(left)
		b.mu.Lock()
		b.fitted = left
		b.mu.Unlock()
	}
	return errs
}
