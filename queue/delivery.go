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

// Owed is a callback that is this coordinator's to make now.
type Owed struct {
	Delivery
	Fence int64
	q     *Queue
}

// NextOwed claims a callback that is due, nil for none, and tells when there may
// be one by time alone, zero for never.
func (q *Queue) NextOwed(ctx context.Context) (*Owed, time.Time, error) {
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
	q.mu.Unlock()
	if due == nil || lease == 0 {
		if again == 0 {
			return nil, time.Time{}, nil
		}
		return nil, time.UnixMilli(again), nil
	}
	o := &Owed{Delivery: *due, q: q}
	o.Attempts++
	key, leaseKey := q.key(keyDelivery, o.ID), q.key(keyLease, deliveryLease+o.ID)
	res, err := q.commit(ctx, "claim a callback", []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(key), "=", due.version), absent(leaseKey),
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

func (o *Owed) holds() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(o.q.key(keyLease, deliveryLease+o.ID)), "=", o.Fence)
}

// Done ends a callback: it was made, or given up.
func (o *Owed) Done(ctx context.Context) error {
	return fenced(o.q.persist(ctx, "end a callback", []clientv3.Cmp{o.holds()}, []clientv3.Op{
		clientv3.OpDelete(o.q.key(keyDelivery, o.ID)), clientv3.OpDelete(o.q.key(keyLease, deliveryLease+o.ID))}))
}

// Again has the callback tried once more, at a later time.
func (o *Owed) Again(ctx context.Context, at time.Time) error {
	d := o.Delivery
	d.NotUntil = at.UnixMilli()
	key := o.q.key(keyDelivery, o.ID)
	return fenced(o.q.persist(ctx, "postpone a callback", []clientv3.Cmp{o.holds(), present(key)}, []clientv3.Op{
		put(key, &d), clientv3.OpDelete(o.q.key(keyLease, deliveryLease+o.ID))}))
}
