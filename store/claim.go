package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// claimBucket is the step in which claims end: those of one step share a lease,
// so that a claim costs one write.
const claimBucket = 5 * time.Minute

// claimLeases are the leases of claims by the step in which they end.
type claimLeases struct {
	mu     sync.Mutex
	leases map[int64]clientv3.LeaseID
}

// ClaimTask takes a task for its caller until a time, at least; CodeDuplicateTask
// if somebody has it. Where the deadline passed it may have been taken: it is
// then not to be had until it ends.
func (s *Store) ClaimTask(ctx context.Context, id string, until time.Time) error {
	key, err := s.taskKey(id)
	if err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	for again := false; ; again = true {
		lease, err := s.claimLease(ctx, until)
		if err != nil {
			return failure("claim a task", err)
		}
		res, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, s.boot, clientv3.WithLease(lease))).Commit()
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound) && !again:
			s.claims.forget(lease) // ended early, as by a clock that was set
			continue
		case err != nil:
			return failure("claim a task", err)
		case !res.Succeeded:
			e := api.Errorf(api.CodeDuplicateTask, "task %s was accepted before: it is not run twice", id)
			e.Field, e.Remedy = "task", "the first call has its result; seal a new task to run it again"
			return e
		}
		return nil
	}
}

// ReleaseTask gives a task back of which nothing ran.
func (s *Store) ReleaseTask(ctx context.Context, id string) error {
	key, err := s.taskKey(id)
	if err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	_, err = s.client.Delete(ctx, key)
	return failure("release a task", err)
}

func (s *Store) taskKey(id string) (string, error) {
	if _, err := s.settingKey(id); err != nil {
		return "", err
	}
	return s.cfg.Prefix + "claims/" + id, nil
}

// claimLease is the lease of the step in which until lies.
func (s *Store) claimLease(ctx context.Context, until time.Time) (clientv3.LeaseID, error) {
	step := until.Unix()/int64(claimBucket/time.Second) + 1
	s.claims.mu.Lock()
	defer s.claims.mu.Unlock()
	if id, ok := s.claims.leases[step]; ok {
		return id, nil
	}
	now := s.cfg.Now()
	end := time.Unix(step*int64(claimBucket/time.Second), 0)
	l, err := s.client.Grant(ctx, int64(end.Sub(now)/time.Second)+1)
	if err != nil {
		return 0, fmt.Errorf("make a lease: %w", err)
	}
	for old := range s.claims.leases {
		if old*int64(claimBucket/time.Second) < now.Unix() {
			delete(s.claims.leases, old)
		}
	}
	if s.claims.leases == nil {
		s.claims.leases = map[int64]clientv3.LeaseID{}
	}
	s.claims.leases[step] = l.ID
	return l.ID, nil
}

func (c *claimLeases) forget(id clientv3.LeaseID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for step, l := range c.leases {
		if l == id {
			delete(c.leases, step)
		}
	}
}
