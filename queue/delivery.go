package queue

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// deliverFor is how long a callback is tried.
const deliverFor = time.Hour

// owe notes that a callback is to be told of how the call ended.
func (q *Queue) owe(c *Call, now time.Time, dead bool) []clientv3.Op {
	if c.Deliver.Callback == "" {
		return nil
	}
	d := Delivery{ID: c.ID, Function: c.Function, Owner: c.Owner, By: c.By, Until: now.Add(min(deliverFor, q.cfg.Keep)).UnixMilli(), Dead: dead}
	return []clientv3.Op{put(q.key(keyDelivery, c.ID), &d)}
}

// Owed is a callback that is this coordinator's to make now. It ends with Done or
// Again.
type Owed struct {
	Delivery
	Fence int64
	q     *Queue
}

// NextOwed claims a callback that is due, nil for none, and tells when there may
// be one by time alone, zero for never.
func (q *Queue) NextOwed(ctx context.Context) (owed *Owed, at time.Time, err error) {
	now := q.cfg.Now().UnixMilli()
	var due *Delivery
	var again int64
	q.mu.Lock()
	lease := q.lease
	for id, d := range q.view.deliveries {
		switch {
		case d.leased != 0 || !q.view.mine(d.By, id):
		case d.NotUntil > now:
			if again == 0 || d.NotUntil < again {
				again = d.NotUntil
			}
		case due == nil || d.Until < due.Until:
			due = d
		}
	}
	if due == nil || lease == 0 {
		q.mu.Unlock()
		if again == 0 {
			return nil, time.Time{}, nil
		}
		return nil, time.UnixMilli(again), nil
	}
	o := &Owed{Delivery: *due, q: q}
	q.mu.Unlock()
	o.Attempts++
	q.work(o.lease())
	defer func() {
		if owed == nil {
			q.rest(o.lease())
		}
	}()
	key, leaseKey := q.key(keyDelivery, o.ID), q.key(keyLease, o.lease())
	res, err := q.commit(ctx, "claim a callback", []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(key), "=", o.version), absent(leaseKey),
	}, []clientv3.Op{clientv3.OpPut(leaseKey, q.cfg.ID, clientv3.WithLease(lease)), put(key, &o.Delivery)}, nil)
	if err != nil {
		return nil, time.Time{}, err
	}
	if !res.Succeeded {
		return nil, q.cfg.Now().Add(10 * time.Millisecond), nil // the picture is being brought up to date
	}
	o.Fence = res.Header.Revision
	return o, time.Time{}, nil
}

// lease is the name of the callback's lease.
func (o *Owed) lease() string { return deliveryLease + o.ID }

func (o *Owed) holds() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(o.q.key(keyLease, o.lease())), "=", o.Fence)
}

// dropOwed ends what is owed of a call, with the lease of who is at it: what that one
// writes later is not about the next outcome of the same call.
func (q *Queue) dropOwed(id string) []clientv3.Op {
	return []clientv3.Op{clientv3.OpDelete(q.key(keyDelivery, id)), clientv3.OpDelete(q.key(keyLease, deliveryLease+id))}
}

// Done ends a callback: it was made, or given up.
func (o *Owed) Done(ctx context.Context) error {
	defer o.q.rest(o.lease())
	return fenced(o.q.persist(ctx, "end a callback", []clientv3.Cmp{o.holds()}, o.q.dropOwed(o.ID)))
}

// Again has the callback tried once more, at a later time.
func (o *Owed) Again(ctx context.Context, at time.Time) error {
	defer o.q.rest(o.lease())
	d := o.Delivery
	d.NotUntil = at.UnixMilli()
	key := o.q.key(keyDelivery, o.ID)
	return fenced(o.q.persist(ctx, "postpone a callback", []clientv3.Cmp{o.holds(), present(key)}, []clientv3.Op{
		put(key, &d), clientv3.OpDelete(o.q.key(keyLease, o.lease()))}))
}
