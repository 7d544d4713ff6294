package coordinator

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// trafficOf is the traffic statement of a stored function, nil for none. It was
// verified when it was stored; key brokers and callers verify it again.
func trafficOf(rec *store.Function) *sealed.Traffic {
	if len(rec.Traffic) == 0 {
		return nil
	}
	signed, err := sealed.ParseTraffic(rec.Traffic)
	if err != nil {
		return nil // as without one: the latest revision alone gets keys
	}
	return signed.Unverified()
}

// statedUntil is when the statement of rec that names the revision r ends.
func statedUntil(rec *store.Function, r *route) time.Time {
	t := trafficOf(rec)
	if r.plain != nil || t == nil || t.Find(r.revision, r.rec.Sequence) == nil {
		return time.Time{}
	}
	return time.Unix(int64(t.Expires), 0)
}

// verifyTraffic reads a statement that the owner of name signed and that is live.
func verifyTraffic(b []byte, name api.FunctionName, owner sealed.Fingerprint) (*sealed.Traffic, error) {
	signed, err := sealed.ParseTraffic(b)
	if err != nil {
		return nil, api.Invalid("statement", "sign it with this release's faasd-sec", err.Error())
	}
	t, err := signed.Verify(owner)
	if err != nil {
		e := api.Errorf(api.CodeForbidden, "the traffic statement is not signed by the owner of %s", name.Short())
		e.Field, e.Err = "statement", err
		return nil, e
	}
	if t.FullName() != string(name) {
		return nil, api.Invalid("statement", "send it to its own function", "it concerns "+t.FullName())
	}
	if err := t.Live(time.Now()); err != nil {
		return nil, gate.Coded(err)
	}
	return t, nil
}

// setStatement divides the calls of a sealed function as its owner's statement says.
func (c *Coordinator) setStatement(ctx context.Context, name api.FunctionName, statement []byte) error {
	err := c.divideBy(ctx, name, func(f *store.Function, past []*store.Function) error { return divideSealed(f, past, statement) })
	if err == nil {
		c.log.Info("calls are divided by the owner's statement", "function", name)
	}
	return err
}

// divideSealed changes f as setStatement says. The latest revision stays the current
// one, whatever its share: who knows of no statement goes by that.
func divideSealed(f *store.Function, past []*store.Function, statement []byte) error {
	if f.Plain != nil {
		return api.Invalid("statement", "send percent", f.Name.Short()+" is a plain function, which nobody signs for")
	}
	owner, err := sealed.ParseFingerprint(f.Owner)
	if err != nil {
		return api.Wrap(api.CodeInternal, err, "a stored owner does not parse")
	}
	t, err := verifyTraffic(statement, f.Name, owner)
	if err != nil {
		return err
	}
	conflict := func(format string, args ...any) error {
		e := api.Errorf(api.CodeConflict, format, args...)
		e.Field, e.Remedy = "statement", "sign another one: faasd-sec traffic"
		return e
	}
	switch {
	case f.Next != nil:
		return conflict("a revision of %s is on its way; try again when it serves", f.Name.Short())
	case t.Sequence <= max(f.Newest(), f.Stated):
		return conflict("statement %d is not above %d, which was said last of %s", t.Sequence, max(f.Newest(), f.Stated), f.Name.Short())
	case t.Latest().Sequence != f.Newest() || f.Sequence != f.Newest():
		return conflict("the latest descriptor that the statement names is %d, and of %s it is %d", t.Latest().Sequence, f.Name.Short(), f.Newest())
	}
	known, shares := knownOf(f, past), map[*store.Function]int{}
	for _, s := range t.Shares {
		i := slices.IndexFunc(known, func(k *store.Function) bool { return k.Revision == s.Revision.String() && k.Sequence == s.Sequence })
		if i < 0 {
			return conflict("%s has no revision %.12s under descriptor %d any more", f.Name.Short(), s.Revision, s.Sequence)
		}
		if err := signedBy(known[i], owner); err != nil {
			return err
		}
		shares[known[i]] = int(s.Percent)
	}
	if _, has := shares[known[0]]; !has {
		return conflict("the statement does not name the current revision of %s", f.Name.Short())
	}
	stated := dividedAs(f, known[0], known, shares)
	stated.Traffic, stated.Stated = statement, t.Sequence
	*f = stated
	return nil
}

// signedBy refuses a revision whose descriptor another owner signed.
func signedBy(f *store.Function, owner sealed.Fingerprint) error {
	signed, err := sealed.ParseDescriptor(f.Descriptor)
	if err == nil {
		_, err = signed.Verify(owner)
	}
	if err != nil {
		e := api.Errorf(api.CodeForbidden, "revision %.12s of %s is not its owner's", f.Revision, f.Name.Short())
		e.Field, e.Err = "statement", err
		return e
	}
	return nil
}

// checkRolling checks the statement that comes with a new descriptor d of revision
// rev, if there is one, and returns its sequence.
func checkRolling(d *sealed.Descriptor, rev sealed.Digest, statement []byte, owner sealed.Fingerprint) (uint64, error) {
	if len(statement) == 0 {
		return 0, nil
	}
	t, err := verifyTraffic(statement, api.FunctionName(d.FullName()), owner)
	if err != nil {
		return 0, err
	}
	if t.Find(rev, d.Sequence) != t.Latest() {
		return 0, api.Invalid("statement", "deploy again", "it does not name the descriptor that it came with as the latest one")
	}
	return t.Sequence, nil
}

// rollingTraffic is next's statement if all that it names still serves, or will.
func rollingTraffic(old, next *store.Function) []byte {
	t := trafficOf(next)
	if t == nil {
		return nil
	}
	served := append(old.Serving(), next)
	for _, s := range t.Shares {
		if !slices.ContainsFunc(served, func(f *store.Function) bool { return f.Revision == s.Revision.String() && f.Sequence == s.Sequence }) {
			return nil // what it names was replaced meanwhile
		}
	}
	return next.Traffic
}

// stillBeside are the revisions beside old that go on beside it while next is on its
// way. Of a sealed function those that next's statement does not name drain.
func stillBeside(old, next *store.Function) []store.Beside {
	beside := slices.DeleteFunc(slices.Clone(old.Beside), func(b store.Beside) bool { return b.Function.Revision == next.Revision })
	if next.Plain != nil {
		return beside
	}
	return unshared(beside, trafficOf(next), time.Now())
}

// unshared has those drain that have a share, and that t, which may be nil, does not
// name.
func unshared(beside []store.Beside, t *sealed.Traffic, now time.Time) []store.Beside {
	list := slices.Clone(beside)
	for i, b := range list {
		named := t != nil && slices.ContainsFunc(t.Shares, func(s sealed.Share) bool {
			return s.Revision.String() == b.Function.Revision && s.Sequence == b.Function.Sequence
		})
		if b.Until == 0 && !named {
			list[i].Until, list[i].Percent = now.Add(drainFor).UnixMilli(), 0
		}
	}
	return list
}

// lapsed has the current revision take all calls once the statement that divided
// them has ended.
func (s *scaler) lapsed(ctx context.Context, rec *store.Function) {
	t, now := trafficOf(rec), time.Now()
	if t == nil || now.Before(time.Unix(int64(t.Expires), 0)) {
		return
	}
	if s.alter(ctx, rec, func(f *store.Function) { f.Traffic, f.Beside = nil, unshared(f.Beside, nil, now) }) {
		s.c.log.Info("a traffic statement ended", "function", rec.Name, "sequence", fmt.Sprint(t.Sequence))
	}
}
