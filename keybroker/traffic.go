package keybroker

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// lapseEvery is how long after a traffic statement's end the keys that it named
// may lie in the vault. They are not released from that end on.
const lapseEvery = time.Minute

// checkTraffic holds a deposit's traffic statement against its other parts, and
// takes both into next: the owner signed the statement, it is of this function and
// live, and there are the keys of all descriptors that it names and of no other.
func (b *Broker) checkTraffic(next *record, latest sealed.Digest, dep *unseal.Deposit, name string) error {
	signed, err := sealed.ParseTraffic(dep.Traffic)
	if err != nil {
		return api.Invalid("traffic", "sign it with this release's faasd-sec", err.Error())
	}
	owner, err := next.owner()
	if err != nil {
		return err
	}
	t, err := signed.Verify(owner.Fingerprint())
	if err != nil {
		return &api.Error{Code: api.CodeForbidden, Field: "traffic", Err: err,
			Message: "it is not a statement signed by the depositor's own key", Remedy: "sign and deposit with one identity"}
	}
	invalid := func(message string) error {
		return api.Invalid("traffic", "have it name the function's descriptors, and deposit the keys of each", message)
	}
	if err := t.Live(b.cfg.Now()); err != nil {
		return sealedError(err)
	}
	if t.FullName() != name {
		return invalid("it concerns another function")
	}
	if t.Find(latest, next.Sequence) != t.Latest() {
		return invalid("it does not name the deposited descriptor as the latest one")
	}
	named := map[*sealed.Share]bool{t.Latest(): true}
	for i := range dep.Beside {
		d := &dep.Beside[i]
		h := held{Descriptor: d.Descriptor, Signing: d.Signing, Decryption: d.Decryption}
		_, rev, err := b.checkDeposit(next.Owner, &h, name)
		if err != nil {
			return err
		}
		s := t.Find(rev, h.Sequence)
		if s == nil || named[s] {
			return invalid(fmt.Sprintf("descriptor %d is deposited, and not named, or more than once", h.Sequence))
		}
		named[s] = true
		next.Beside = append(next.Beside, h)
	}
	if len(named) != len(t.Shares) {
		return invalid("it names a descriptor whose keys are not deposited")
	}
	next.Traffic, next.Stated = dep.Traffic, t.Sequence
	return nil
}

// traffic is the statement of a record while it is live. One that is not, or that
// cannot be read, is an error.
func (r *record) traffic(now time.Time) (*sealed.Traffic, error) {
	owner, err := r.owner()
	if err != nil {
		return nil, err
	}
	signed, err := sealed.ParseTraffic(r.Traffic)
	if err != nil {
		return nil, err
	}
	t, err := signed.Verify(owner.Fingerprint())
	if err != nil {
		return nil, err
	}
	return t, t.Live(now)
}

// chosen finds the keys to release for a revision: those of the latest descriptor,
// or of one that a live traffic statement names.
func (b *Broker) chosen(name api.FunctionName, r *record, want sealed.Digest) (*held, *sealed.Descriptor, error) {
	latest := r.latest()
	desc, rev, err := b.known.verify(name, r.Owner, latest)
	if err != nil {
		return nil, nil, err
	}
	if rev == want {
		return latest, desc, nil
	}
	if len(r.Beside) > 0 {
		if t, err := r.traffic(b.cfg.Now()); err == nil {
			for i := range r.Beside {
				h := &r.Beside[i]
				desc, rev, err := b.known.verify(name, r.Owner, h)
				if err != nil {
					return nil, nil, err
				}
				if rev == want && t.Find(rev, h.Sequence) != nil {
					return h, desc, nil
				}
			}
		}
	}
	return nil, nil, &api.Error{Code: api.CodeStaleRevision, Field: "revision",
		Message: "the keys are released for the current revision alone, and for those that its owner's traffic statement names",
		Remedy:  "start the current revision"}
}

// write replaces the record of name and remembers when its statement ends. The
// caller holds the vault's lock.
func (b *Broker) write(name api.FunctionName, r *record) error {
	if err := b.vault.write(name, r); err != nil {
		return err
	}
	b.noteLapse(name, r)
	return nil
}

// noteLapse remembers when a record's statement ends. The caller holds the lock.
func (b *Broker) noteLapse(name api.FunctionName, r *record) {
	delete(b.lapsing, name)
	if len(r.Traffic) == 0 {
		return
	}
	b.lapsing[name] = time.Time{} // what cannot be read is not live
	if signed, err := sealed.ParseTraffic(r.Traffic); err == nil {
		b.lapsing[name] = time.Unix(int64(signed.Unverified().Expires), 0)
	}
}

// findLapsing looks for statements in the vault.
func (b *Broker) findLapsing() error {
	b.vault.mu.Lock()
	defer b.vault.mu.Unlock()
	names, err := b.vault.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		r, err := b.vault.read(name)
		if err != nil { // whoever asks for its keys hears so
			b.cfg.Log.Error("key broker cannot read a function's keys", "function", name, "error", err)
			continue
		}
		if r != nil {
			b.noteLapse(name, r)
		}
		r.wipe()
	}
	return nil
}

// Lapse destroys the keys that were kept for traffic statements which have ended.
func (b *Broker) Lapse() error {
	b.vault.mu.Lock()
	defer b.vault.mu.Unlock()
	now, errs := b.cfg.Now(), []error(nil)
	for _, name := range slices.Sorted(maps.Keys(b.lapsing)) {
		if now.Before(b.lapsing[name]) {
			continue
		}
		r, err := b.vault.read(name)
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case r == nil:
			delete(b.lapsing, name)
			continue
		}
		rest := *r
		rest.Traffic, rest.Beside = nil, nil
		errs = append(errs, b.write(name, &rest))
		r.wipe()
		b.cfg.Log.Info("a traffic statement ended", "function", name, "sequence", rest.Stated)
	}
	return errors.Join(errs...)
}
