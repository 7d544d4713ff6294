package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// leadTTL is how long a leader that was cut off keeps the others waiting.
	leadTTL = 5 * time.Second
	// leadRenew is the pause between two proofs of leadership.
	leadRenew = leadTTL / 5
	// leadMargin is how much earlier than etcd a leader takes its lease for
	// ended: clocks of two machines do not run at quite the same rate.
	leadMargin = 500 * time.Millisecond
)

// errNotLeader is the cause with which the context of a leader's work ends.
var errNotLeader = errors.New("the leadership could not be proved any longer")

// Leader is who leads, as the store has it.
type Leader struct {
	Holder string `json:"holder"`
	// Fence grows with each term. It is the version in which the term began.
	Fence int64 `json:"-"`

	// Member is the embedded member through which it leads, 0 where etcd is
	// elsewhere; Boot is drawn at each Open. A term of this very member from an
	// earlier boot is a dead process's: its directory is locked by this one.
	Member uint64 `json:"member,omitempty"`
	Boot   string `json:"boot"`
}

// Lead campaigns for the leadership of that name among all stores on the same
// etcd, and calls run while this one leads. holder says who it is, to people.
//
// Run's context ends when ctx does and as soon as the leadership can no longer
// be proved: before any other store may lead, as long as this process runs. One
// that was stopped as a whole and goes on later may believe for a moment that
// it leads; what must not happen then is written with the fence, which is
// greater in each later term. When run has returned after such a loss, Lead
// campaigns again. Otherwise it gives the leadership up and returns what run
// returned, or a context's error once ctx has ended or the store was closed.
func (s *Store) Lead(ctx context.Context, name, holder string, run func(ctx context.Context, fence int64) error) error {
	key, err := s.leaderKey(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	for pause := firstPause; ; {
		t, err := s.campaign(ctx, key, holder)
		if err == nil {
			pause = firstPause
			lost, err := t.hold(ctx, run)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !lost {
				return err
			}
			s.cfg.Log.Warn("leadership lost; campaigning again", "of", name, "error", err)
		} else if ctx.Err() == nil {
			s.cfg.Log.Warn("no leadership to be had; trying again", "of", name, "again_in", pause, "error", err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, mostPause)
	}
}

// Leader reads who leads now; CodeNotFound if nobody does.
func (s *Store) Leader(ctx context.Context, name string) (Leader, error) {
	key, err := s.leaderKey(name)
	if err != nil {
		return Leader{}, err
	}
	l, _, err := s.readLeader(ctx, key)
	if err == nil && l == nil {
		err = notFound("leader of " + name)
	}
	if err != nil {
		return Leader{}, err
	}
	return *l, nil
}

// Leads is the condition of a transaction that only the leader of that term
// may make: with it a leader that was stopped for a while writes nothing late.
func (s *Store) Leads(name string, fence int64) (clientv3.Cmp, error) {
	key, err := s.leaderKey(name)
	return clientv3.Compare(clientv3.CreateRevision(key), "=", fence), err
}

func (s *Store) leaderKey(name string) (string, error) {
	if _, err := s.settingKey(name); err != nil {
		return "", err
	}
	return s.cfg.Prefix + "leaders/" + name, nil
}

// readLeader is nil without error where nobody leads; version is then the one
// at which that was so.
func (s *Store) readLeader(ctx context.Context, key string) (l *Leader, version int64, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	res, err := s.client.Get(ctx, key)
	if err != nil {
		return nil, 0, failure("read the leader", err)
	}
	if len(res.Kvs) == 0 {
		return nil, res.Header.Revision, nil
	}
	l = &Leader{}
	if err := json.Unmarshal(res.Kvs[0].Value, l); err != nil {
		return nil, 0, api.Wrap(api.CodeInternal, err, "the leader's record is damaged")
	}
	l.Fence = res.Kvs[0].CreateRevision
	return l, res.Header.Revision, nil
}

// term is a leadership that was won.
type term struct {
	store *Store
	lease clientv3.LeaseID
	fence int64
	until time.Time // as long as this the leadership is proved
}

// campaign returns once this store leads. Its caller ends the term.
func (s *Store) campaign(ctx context.Context, key, holder string) (*term, error) {
	mine := Leader{Holder: holder, Member: s.memberID(), Boot: s.boot}
	value, err := json.Marshal(mine)
	if err != nil {
		return nil, fmt.Errorf("encode leader: %w", err)
	}
	for {
		now, version, err := s.readLeader(ctx, key)
		switch {
		case err != nil:
			return nil, err
		case now != nil && now.Member != 0 && now.Member == mine.Member && now.Boot != mine.Boot:
			if err := s.endTerm(ctx, key, now.Fence); err != nil {
				return nil, err
			}
		case now != nil:
			if err := s.waitDeleted(ctx, key, version); err != nil {
				return nil, err
			}
		}
		t, err := s.tryLead(ctx, key, string(value))
		if t != nil || err != nil {
			return t, err
		}
	}
}

// tryLead is nil without error where another store was faster.
func (s *Store) tryLead(ctx context.Context, key, value string) (t *term, retErr error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	sent := time.Now()
	lease, err := s.client.Grant(ctx, int64(leadTTL/time.Second))
	if err != nil {
		return nil, failure("make the leader's lease", err)
	}
	defer func() {
		if t == nil {
			s.dropLease(ctx, lease.ID)
		}
	}()
	res, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, value, clientv3.WithLease(lease.ID))).Commit()
	if err != nil {
		return nil, failure("become leader", err)
	}
	if !res.Succeeded {
		return nil, nil
	}
	return &term{store: s, lease: lease.ID, fence: res.Header.Revision, until: provedUntil(sent, lease.TTL)}, nil
}

// provedUntil is how long a lease of ttl seconds is ours for certain, if it was
// granted or renewed by a request that left at sent.
func provedUntil(sent time.Time, ttl int64) time.Time {
	return sent.Add(time.Duration(ttl)*time.Second - leadMargin)
}

// waitDeleted returns once key is gone, which was there at version.
func (s *Store) waitDeleted(ctx context.Context, key string, version int64) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for res := range s.client.Watch(ctx, key, clientv3.WithRev(version+1), clientv3.WithFilterPut()) {
		if err := res.Err(); err != nil {
			return failure("wait for the leader's end", err)
		}
		if len(res.Events) > 0 {
			return nil
		}
	}
	return failure("wait for the leader's end", errors.Join(ctx.Err(), errors.New("the watch was closed")))
}

// endTerm removes a leader that is known to be gone, if it still has the term.
func (s *Store) endTerm(ctx context.Context, key string, fence int64) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	_, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", fence)).Then(clientv3.OpDelete(key)).Commit()
	return failure("end the term of a process that is gone", err)
}

// hold calls run and renews until it has returned. lost says that the
// leadership ended first. The term is over afterwards.
func (t *term) hold(ctx context.Context, run func(context.Context, int64) error) (lost bool, err error) {
	// Resigning is what lets another begin at once.
	defer t.store.dropLease(ctx, t.lease)
	work, end := context.WithCancelCause(ctx)
	defer end(nil)
	done := make(chan error, 1)
	go func() { done <- run(work, t.fence) }()

	failed := make(chan error, 1)
	renewing, stop := context.WithCancel(work)
	go func() { failed <- t.renew(renewing) }()
	select {
	case err = <-done:
		stop()
		<-failed
	case cause := <-failed:
		stop()
		end(errors.Join(errNotLeader, cause))
		err = <-done
	}
	return errors.Is(context.Cause(work), errNotLeader), err
}

// renew keeps the lease until ctx ends or the leadership is not proved any
// longer.
func (t *term) renew(ctx context.Context) error {
	for {
		if err := sleep(ctx, min(leadRenew, time.Until(t.until))); err != nil {
			return err
		}
		sent := time.Now()
		asking, cancel := context.WithDeadline(ctx, t.until)
		res, err := t.store.client.KeepAliveOnce(asking, t.lease)
		cancel()
		switch {
		case err == nil:
			t.until = provedUntil(sent, res.TTL)
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, rpctypes.ErrLeaseNotFound), !time.Now().Before(t.until):
			return failure("renew the leadership", err)
		}
	}
}

// newBoot draws what tells one Open from another.
func newBoot() string { return rand.Text() }
