package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

const (
	// rollingLife is how long the revision before may have replicas started while a
	// new one is on its way.
	rollingLife = 15 * time.Minute
	// DefaultTrafficLife is how long the calls of a sealed function are divided.
	DefaultTrafficLife = 24 * time.Hour
)

// share is a descriptor with its part of the calls in percent.
type share struct {
	f       *function
	percent int
}

// Division tells how the calls of a sealed function are divided.
type Division struct {
	Name     api.FunctionName `json:"name"`
	Sequence uint64           `json:"sequence"`
	Expires  time.Time        `json:"expires"`
	Percent  map[string]int   `json:"percent"` // by revision, hex
	// Anew is there where one revision that was not the latest takes all calls: it
	// was signed anew, and becomes the current one by a rollout.
	Anew *Deployed `json:"anew,omitempty"`
}

// Divide divides the calls of a sealed function among its revisions, named by the
// beginnings of their digests, in percent, for a time of at most
// sealed.MaxTrafficLife: it signs a statement, deposits it with the keys of what it
// names, and gives it to the gateway. After that time the latest revision takes all
// calls. 100 for that one ends a division at once; 100 for another is a rollback.
func (c *Client) Divide(ctx context.Context, name api.FunctionName, percent map[string]int, life time.Duration, ring *Keyring) (Division, error) {
	if err := c.needIdentity(); err != nil {
		return Division{}, err
	}
	if life <= 0 || life > sealed.MaxTrafficLife {
		return Division{}, api.Invalid("--for", "use up to "+sealed.MaxTrafficLife.String(), life.String())
	}
	list, err := c.Revisions(ctx, name)
	if err != nil {
		return Division{}, err
	}
	if len(list) == 0 {
		return Division{}, api.Errorf(api.CodeUnavailable, "the gateway tells no revision of %s", name.Short())
	}
	chosen, err := divided(list, percent)
	if err != nil {
		return Division{}, err
	}
	d := Division{Name: name, Percent: map[string]int{}}
	for r, n := range chosen {
		if n > 0 {
			d.Percent[r.Revision] = n
		}
		if n == 100 && r != &list[0] {
			done, err := c.Rollback(ctx, name, r.Revision, ring)
			d.Sequence, d.Anew = done.Sequence, &done
			return d, err
		}
	}
	var shares []share
	for r, n := range chosen {
		f, err := c.own(name, r)
		if err != nil {
			return Division{}, err
		}
		for _, at := range []time.Time{c.cfg.Now(), c.cfg.Now().Add(life)} {
			if _, err := f.desc.KeyAt(at); err != nil && n > 0 {
				return Division{}, &api.Error{Code: api.CodeConflict, Field: "revision", Err: err,
					Message: fmt.Sprintf("nobody may seal to the keys of revision %.12s until %s", r.Revision, at.Format(time.DateTime)), Remedy: "deploy its content again: faasd-sec deploy"}
			}
		}
		shares = append(shares, share{f, n})
	}
	if len(shares) == 1 {
		life = sealed.MaxTrafficLife // what it ends is forgotten by then
	}
	d.Sequence, d.Expires, err = c.state(ctx, name, shares, life, ring)
	return d, err
}

// EndRollout has the key broker destroy the keys that a deployment let the revision
// before have, once the new one serves: without it they end by themselves, minutes
// later. Calls that are divided stay so.
func (c *Client) EndRollout(ctx context.Context, name api.FunctionName, ring *Keyring) error {
	if err := c.needIdentity(); err != nil {
		return err
	}
	f, err := c.current(ctx, name)
	if err != nil || f == nil || f.split != nil && len(f.split.t.Shares) > 1 {
		return err
	}
	// As long as what it ends would have gone on.
	_, _, err = c.state(ctx, name, []share{{f, 100}}, rollingLife, ring)
	return err
}

// state signs a statement of shares, deposits it, and gives it to the gateway.
func (c *Client) state(ctx context.Context, name api.FunctionName, shares []share, life time.Duration, ring *Keyring) (uint64, time.Time, error) {
	broker, err := c.pinnedBroker(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}
	before, err := c.current(ctx, name)
	if err != nil {
		return 0, time.Time{}, err
	}
	now := c.cfg.Now()
	until := now.Add(life)
	keys, err := ring.open(name, false, now)
	if err != nil {
		return 0, time.Time{}, err
	}
	defer keys.wipe()
	seq, err := ring.number(name, keys, before, now)
	if err != nil {
		return 0, time.Time{}, err
	}
	dep, err := c.statement(seq, shares, keys, ring, now, until)
	if errors.Is(err, errKeysGone) {
		err = &api.Error{Code: api.CodeConflict, Field: "revision", Err: err, Message: "the keys of one of the revisions are not on this machine any more",
			Remedy: "deploy its content again: faasd-sec deploy"}
	}
	if err != nil {
		return 0, time.Time{}, err
	}
	statement := dep.Traffic
	if err := c.deposit(ctx, name, dep, broker, now); err != nil {
		return 0, time.Time{}, err
	}
	if err := c.order(ctx, name, "traffic", api.Traffic{Statement: statement}, nil); err != nil {
		return 0, time.Time{}, err
	}
	_, err = c.fetch(ctx, name) // own calls go by it at once
	return seq, until, err
}

// statement signs a statement of shares, and returns it as a deposit with the keys
// of all of them.
func (c *Client) statement(seq uint64, shares []share, keys *functionKeys, ring *Keyring, now, until time.Time) (_ *unseal.Deposit, retErr error) {
	slices.SortFunc(shares, func(a, b share) int { return cmp.Compare(a.f.desc.Sequence, b.f.desc.Sequence) })
	latest := shares[len(shares)-1].f
	issued := now.Add(-clockSlack) // for callers whose clock is behind ours
	if most := issued.Add(sealed.MaxTrafficLife); until.After(most) {
		until = most
	}
	t := &sealed.Traffic{Name: latest.desc.Name, Namespace: latest.desc.Namespace, Sequence: seq, Issued: uint64(issued.Unix()), Expires: uint64(until.Unix())}
	dep, err := ring.held(keys, latest)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			dep.Wipe()
		}
	}()
	for _, s := range shares {
		t.Shares = append(t.Shares, sealed.Share{Revision: s.f.revision, Sequence: s.f.desc.Sequence, Percent: uint64(s.percent)})
		if s.f == latest {
			continue
		}
		d, err := ring.held(keys, s.f)
		if err != nil {
			return nil, err
		}
		dep.Beside = append(dep.Beside, d)
	}
	if dep.Traffic, err = t.Sign(c.cfg.Random, c.cfg.Identity.Signer()); err != nil {
		return nil, descriptorError(err)
	}
	return &dep, nil
}

// depositNext deposits the keys of a descriptor that follows before, which may be
// nil, and a statement that lets what serves now go on having replicas until the
// new one does. It returns that statement, nil where there is none to be made.
func (c *Client) depositNext(ctx context.Context, before, next *function, keys *functionKeys, ring *Keyring, broker BrokerPin, now time.Time) ([]byte, error) {
	if shares, until := rolling(before, next, now); len(shares) > 1 {
		dep, err := c.statement(next.desc.Sequence+1, shares, keys, ring, now, until)
		if err == nil {
			statement := dep.Traffic
			return statement, c.deposit(ctx, next.name, dep, broker, now)
		} else if !errors.Is(err, errKeysGone) { // else the revision before serves with the replicas it has
			return nil, err
		}
	}
	dep, err := ring.held(keys, next)
	if err != nil {
		return nil, fmt.Errorf("client: deposit the keys: %w", err)
	}
	return nil, c.deposit(ctx, next.name, &dep, broker, now)
}

// rolling are the shares while next is on its way to follow before. What takes all
// calls goes on doing so, but for a revision that had a share and comes back: that
// takes them at once. The same revision signed anew goes on as it was divided.
func rolling(before, next *function, now time.Time) ([]share, time.Time) {
	until := now.Add(rollingLife)
	if before == nil {
		return []share{{next, 100}}, until
	}
	if before.revision == next.revision {
		shares := []share{{next, 100}}
		if before.split == nil || before.split.t.Latest().Sequence != before.desc.Sequence {
			return shares, until
		}
		for seq, f := range before.split.of {
			if p := int(before.split.t.Find(f.revision, seq).Percent); f.revision != next.revision {
				shares = append(shares, share{f, p})
				shares[0].percent -= p
			}
		}
		return shares, time.Unix(int64(before.split.t.Expires), 0)
	}
	shares := []share{{before, 100}, {next, 0}}
	if before.split != nil {
		for _, f := range before.split.of {
			if f.revision == next.revision {
				shares[0].percent, shares[1].percent = 0, 100
			}
		}
	}
	return shares, until
}

// divided chooses from a listing, whose first one is the current revision, by the
// beginnings of digests. The current one is always there, if need be with 0.
func divided(list []api.RevisionStatus, percent map[string]int) (map[*api.RevisionStatus]int, error) {
	out, sum := map[*api.RevisionStatus]int{}, 0
	for _, prefix := range slices.Sorted(maps.Keys(percent)) {
		field, n := "percent."+prefix, percent[prefix]
		var found []*api.RevisionStatus
		for i := range list {
			if strings.HasPrefix(list[i].Revision, prefix) {
				found = append(found, &list[i])
			}
		}
		switch {
		case n < 0 || n > 100:
			return nil, api.Invalid(field, "use 0 to 100", fmt.Sprint(n))
		case prefix == "" || len(found) == 0:
			return nil, api.Invalid(field, "faasd-sec rollback NAME --list shows the revisions", "there is no such revision")
		case len(found) > 1 || out[found[0]] > 0:
			return nil, api.Invalid(field, "write more of its digits, and each revision once", "it is not clear which is meant")
		case found[0].State == api.RevisionStarting:
			return nil, &api.Error{Code: api.CodeConflict, Field: field, Message: "that revision is on its way", Remedy: "try again when it serves"}
		}
		if n > 0 {
			out[found[0]] = n
			sum += n
		}
	}
	if sum != 100 {
		return nil, api.Invalid("percent", "make them 100 in all", fmt.Sprintf("they are %d", sum))
	}
	if _, has := out[&list[0]]; !has {
		out[&list[0]] = 0
	}
	if len(out) > sealed.MaxShares {
		return nil, api.Invalid("percent", fmt.Sprintf("name at most %d revisions, with the current one", sealed.MaxShares), fmt.Sprintf("they are %d", len(out)))
	}
	return out, nil
}
