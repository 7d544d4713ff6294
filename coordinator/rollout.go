package coordinator

import (
	"context"
	"net/url"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

const (
	// rollFailures is how many starts of a revision may fail in a row before it is
	// taken back.
	rollFailures = 2
	// rollLimit bounds a rollout, beside what the function itself may take to start.
	rollLimit = 2 * time.Minute
	// drainFor is how long a revision serves what is sealed for it after another has
	// taken its place. Callers with its descriptor hear then that it is out of date.
	drainFor = 5 * time.Second
)

// History is where former revisions are kept; *store.Store is one.
type History interface {
	KeepRevision(ctx context.Context, f store.Function) error
	Revisions(ctx context.Context, name api.FunctionName) ([]*store.Function, error)
	ForgetRevisions(ctx context.Context, name api.FunctionName) error
}

// history is where revisions are kept, nil for nowhere.
func (c *Coordinator) history() History {
	h, _ := c.dep.Store.(History)
	return h
}

// follow is what is to be stored when f follows what is deployed. Where the old
// revision has replicas it goes on serving until f is ready; else f is current at
// once.
func (c *Coordinator) follow(old *store.Function, f store.Function) store.Function {
	if old == nil {
		f.Traffic = nil
		return f
	}
	f.Replicas, f.ReplicasAt, f.Traffic = old.Replicas, old.ReplicasAt, rollingTraffic(old, &f)
	f.Highest, f.Stated = max(old.Newest(), f.Sequence), max(old.Stated, f.Stated)
	now := time.Now().UnixMilli()
	if old.Revision == f.Revision { // signed anew, or with other keys
		f.Rollout, f.Beside = old.Rollout, stillBeside(old, &f)
		if old.Next != nil {
			roll := *old.Rollout
			roll.State, roll.Ended, roll.Code, roll.Reason = api.RolloutFailed, now, api.CodeCancelled, "the revision before it was deployed again"
			f.Rollout = &roll
		}
		return f
	}
	roll := &api.Rollout{State: api.RolloutRolling, From: old.Revision, To: f.Revision, Started: now}
	sum := c.count(0, false).sum(old.Revision)
	if sum.Ready+sum.Starting == 0 {
		roll.State, roll.Ended = api.RolloutDone, now
		f.Rollout, f.Traffic = roll, nil
		return f
	}
	g := *old
	g.Next, g.Rollout, g.Highest, g.Traffic, g.Stated = f.Alone(), roll, f.Highest, f.Traffic, f.Stated
	g.Beside = stillBeside(old, &f)
	return g
}

// followed does what is to be done once a record was stored: nodes let go of what
// does not serve any more, and learn of what is to come.
func (c *Coordinator) followed(old, stored *store.Function) {
	c.scaler.wake()
	if old != nil && old.Revision != stored.Revision {
		c.remember(old)
	}
	if old != nil && !sameServing(old, stored) {
		c.spawn(func() { c.retire(stored.Name, servingOf(stored)...) })
	}
	c.spawn(func() { c.announce(stored) })
}

// remember puts a revision into its function's history.
func (c *Coordinator) remember(f *store.Function) {
	h := c.history()
	if h == nil {
		return
	}
	ctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	if err := h.KeepRevision(ctx, *f); err != nil {
		c.log.Error("a revision is not in its function's history", "function", f.Name, "revision", f.Revision, "err", err)
	}
}

// forgetHistory drops that of a removed function.
func (c *Coordinator) forgetHistory(name api.FunctionName) {
	h := c.history()
	if h == nil {
		return
	}
	ctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	if err := h.ForgetRevisions(ctx, name); err != nil {
		c.log.Warn("the history of a removed function", "function", name, "err", err)
	}
}

func servingOf(f *store.Function) (revisions []string) {
	for _, s := range f.Serving() {
		revisions = append(revisions, s.Revision)
	}
	return revisions
}

// sameServing reports whether all that a serves is served by b.
func sameServing(a, b *store.Function) bool {
	for _, s := range a.Serving() {
		if !serves(b, s.Revision) {
			return false
		}
	}
	return true
}

func serves(f *store.Function, revision string) bool {
	for _, s := range f.Serving() {
		if s.Revision == revision {
			return true
		}
	}
	return false
}

// keepQuery names to a node all revisions of a function that serve.
func keepQuery(rec *store.Function) url.Values {
	return url.Values{api.NodeQueryKeep: servingOf(rec)}
}

// roll brings the next revision up while the current one serves, and has it follow
// once it can, or takes it back; over tells that it did one of the two.
func (s *scaler) roll(ctx context.Context, rec *store.Function, r *route, f *scaled, n *census) (over bool) {
	next := r.beside(rec.Next.Revision)
	if next == nil {
		return false // the record has changed: the next round sees the new one
	}
	was, is := n.sum(r.hex), n.sum(next.hex)
	want := max(1, was.Ready)
	if p, managed := policyOf(rec.Next); managed {
		want = min(max(want, p.Min), max(1, p.Max))
	}
	began := time.UnixMilli(rec.Rollout.Started)
	switch {
	case is.Failed >= rollFailures:
		s.fail(ctx, rec, is.Code, is.Reason)
		return true
	case time.Since(began) > rollLimit+next.bound:
		code, reason := is.Code, is.Reason
		if code == "" {
			code, reason = api.CodeFunctionNotReady, "its replicas were not ready in time"
		}
		s.fail(ctx, rec, code, reason)
		return true
	case is.Ready >= want || was.Ready+was.Starting == 0 && is.Ready > 0:
		s.promote(ctx, rec)
		return true
	}
	f.rolling = want
	err := s.reconcile(ctx, next, f, n, want)
	if api.CodeOf(err) != api.CodeNoRoom {
		return false
	}
	switch { // the two together do not fit
	case is.Ready > 0, is.Starting == 0 && was.Ready+was.Starting <= 1:
		s.promote(ctx, rec)
		return true
	case is.Starting == 0:
		_ = s.reconcile(ctx, r, f, n, was.Ready+was.Starting-1) // logged where it failed
	}
	return false
}

// promote makes the next revision the current one. The one before serves what was
// sealed for it a little longer.
func (s *scaler) promote(ctx context.Context, rec *store.Function) {
	now := time.Now()
	s.c.remember(rec)
	stored := s.alter(ctx, rec, func(f *store.Function) {
		old, beside := f.Alone(), f.Beside
		g := *f.Next
		g.Rollout, g.Highest, g.Replicas, g.ReplicasAt, g.Stated = f.Rollout, f.Newest(), f.Replicas, f.ReplicasAt, f.Stated
		roll := *f.Rollout
		roll.State, roll.Ended = api.RolloutDone, now.UnixMilli()
		g.Rollout = &roll
		if g.Plain == nil {
			beside = unshared(beside, nil, now) // the statement that they had ends with this
		}
		g.Beside = append(beside[:len(beside):len(beside)], store.Beside{Function: old, Until: now.Add(drainFor).UnixMilli()})
		*f = g
	})
	if stored {
		s.c.log.Info("a new revision serves", "function", rec.Name, "revision", rec.Next.Revision, "before", rec.Revision)
	}
}

// fail takes the next revision back.
func (s *scaler) fail(ctx context.Context, rec *store.Function, code api.Code, reason string) {
	stored := s.alter(ctx, rec, func(f *store.Function) {
		roll := *f.Rollout
		roll.State, roll.Ended, roll.Code, roll.Reason = api.RolloutFailed, time.Now().UnixMilli(), code, reason
		f.Highest, f.Next, f.Rollout = f.Newest(), nil, &roll
	})
	if stored {
		s.c.log.Warn("a new revision was taken back", "function", rec.Name, "revision", rec.Next.Revision, "code", code, "reason", reason)
	}
}

// drained lets go of revisions whose time is over.
func (s *scaler) drained(ctx context.Context, rec *store.Function) {
	now := time.Now().UnixMilli()
	over := func(b store.Beside) bool { return b.Until > 0 && b.Until <= now }
	any := false
	for _, b := range rec.Beside {
		any = any || over(b)
	}
	if !any {
		return
	}
	s.alter(ctx, rec, func(f *store.Function) {
		var kept []store.Beside
		for _, b := range f.Beside {
			if !over(b) {
				kept = append(kept, b)
			}
		}
		f.Beside = kept
	})
}

// alter edits a function's record if it is still the one that was decided on, and
// tells whether it did.
func (s *scaler) alter(ctx context.Context, rec *store.Function, edit func(*store.Function)) (done bool) {
	var stored store.Function
	err := s.c.change(ctx, rec.Name, func(f *store.Function) error {
		if f.Version != rec.Version {
			return api.Errorf(api.CodeConflict, "the function was changed meanwhile")
		}
		edit(f)
		stored = *f
		return nil
	})
	switch {
	case err == nil:
		if !sameServing(rec, &stored) {
			s.c.spawn(func() { s.c.retire(rec.Name, servingOf(&stored)...) })
		}
	case api.CodeOf(err) != api.CodeConflict && ctx.Err() == nil:
		s.c.log.Warn("a rollout waits for the store", "function", rec.Name, "err", err)
	}
	return err == nil
}
