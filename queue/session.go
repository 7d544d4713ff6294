package queue

import (
	"context"
	"errors"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// retireFormer revokes the lease of a former life of this coordinator, so that
// what it had need not wait for the lease to run out. That also ends another
// process of the same name, whose writes are fenced from then on.
func (q *Queue) retireFormer(ctx context.Context) error {
	var text []byte
	_, found, err := q.get(ctx, "member", q.key(keyMember, q.cfg.ID), &text)
	if err != nil || !found {
		return err
	}
	id, err := strconv.ParseInt(string(text), 16, 64)
	if err != nil {
		return nil // it ends by itself
	}
	ctx, cancel := q.bound(ctx)
	defer cancel()
	if _, err := q.etc.Revoke(ctx, clientv3.LeaseID(id)); err != nil {
		q.cfg.Log.Warn("lease of the former life not revoked; it ends by itself", "err", err)
	}
	return nil
}

// keepSession has a lease as long as ctx lives, and a new one whenever it is lost.
func (q *Queue) keepSession(ctx context.Context) error {
	for {
		if err := q.holdLease(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			q.cfg.Log.Warn("asynchronous calls: no lease; none are begun meanwhile", "err", err)
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return nil
		}
	}
}

// holdLease returns when the lease is lost.
func (q *Queue) holdLease(ctx context.Context) error {
	gctx, cancel := q.bound(ctx)
	defer cancel()
	lease, err := q.etc.Grant(gctx, int64(q.cfg.LeaseTTL/time.Second))
	if err != nil {
		return failure("make a lease", err)
	}
	life, end := context.WithCancel(ctx)
	defer end()
	alive, err := q.etc.KeepAlive(life, lease.ID)
	if err != nil {
		return failure("keep the lease", err)
	}
	if _, err := q.commit(ctx, "register", nil, []clientv3.Op{clientv3.OpPut(q.key(keyMember, q.cfg.ID),
		strconv.FormatInt(int64(lease.ID), 16), clientv3.WithLease(lease.ID))}, nil); err != nil {
		return err
	}
	q.mu.Lock()
	q.lease, q.session = lease.ID, life
	q.view.wake()
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		q.lease = 0
		q.mu.Unlock()
		if ctx.Err() != nil { // a daemon that stops gives back what it had
			rctx, cancel := q.bound(context.WithoutCancel(ctx))
			defer cancel()
			if _, err := q.etc.Revoke(rctx, lease.ID); err != nil {
				q.cfg.Log.Debug("lease not revoked; it ends by itself", "err", err)
			}
		}
	}()
	for last := time.Now(); ; {
		// The client says nothing while the store is away; by our own clock the
		// lease may be over then.
		t := time.NewTimer(q.cfg.LeaseTTL - time.Since(last))
		select {
		case r, ok := <-alive:
			t.Stop()
			if !ok || r == nil {
				return errors.New("it ran out")
			}
			last = time.Now()
		case <-t.C:
			return errors.New("the store did not prolong it in time")
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
