package queue

import (
	"context"
	"encoding/json"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// DeadLetters lists calls that were given up, in the order of their ids.
func (q *Queue) DeadLetters(ctx context.Context, f Filter) ([]Dead, error) {
	var out []Dead
	err := q.list(ctx, keyDead, f.After, func(b []byte) (bool, error) {
		var d Dead
		if err := json.Unmarshal(b, &d); err != nil {
			return false, api.Wrap(api.CodeInternal, err, "a dead letter's record is damaged")
		}
		if f.takes(d.Function, d.Owner, d.Sender) {
			out = append(out, d)
		}
		return f.Limit <= 0 || len(out) < f.Limit, nil
	})
	return out, err
}

// CountDead counts the dead letters of the cluster.
func (q *Queue) CountDead(ctx context.Context) (int64, error) {
	ctx, cancel := q.bound(ctx)
	defer cancel()
	res, err := q.etc.Get(ctx, q.cfg.Prefix+keyDead, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, failure("count dead letters", err)
	}
	return res.Count, nil
}

// Replay lets a dead letter be attempted anew, all its attempts before it. One
// that has expired is refused: no agent would take what was sealed for it.
func (q *Queue) Replay(ctx context.Context, id string) error {
	var d Dead
	version, found, err := q.get(ctx, "dead letter", q.key(keyDead, id), &d)
	if err != nil {
		return err
	}
	if !found {
		return notFound(id)
	}
	if d.expired(q.cfg.Now()) {
		e := api.Errorf(api.CodeDeadline, "call %s has expired", id)
		e.Field, e.Remedy = "id", "send it anew; deploy the function with a longer max age of queued requests to have more time"
		return e
	}
	c := d.Call
	c.Attempts, c.NotUntil, c.By = 0, 0, q.cfg.ID
	key := q.key(keyDead, id)
	res, err := q.persist(ctx, "replay a dead letter", []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(key), "=", version), absent(q.key(keyCall, id)), absent(q.key(keyResult, id)),
	}, append(q.dropOwed(id), put(q.key(keyCall, id), &c), clientv3.OpDelete(key), clientv3.OpDelete(q.untilKey(d.Until, "dead", id))))
	if err == nil && !res.Succeeded {
		return api.Errorf(api.CodeConflict, "dead letter %s was replayed or purged meanwhile", id)
	}
	return err
}

// Purge forgets a dead letter and its body.
func (q *Queue) Purge(ctx context.Context, id string) error {
	var d Dead
	_, found, err := q.get(ctx, "dead letter", q.key(keyDead, id), &d)
	if err != nil {
		return err
	}
	if !found {
		return notFound(id)
	}
	return q.purge(ctx, id, clientv3.OpDelete(q.untilKey(d.Until, "dead", id)))
}

func (q *Queue) purge(ctx context.Context, id string, note clientv3.Op) error {
	var d Dead
	key := q.key(keyDead, id)
	version, found, err := q.get(ctx, "dead letter", key, &d)
	if err != nil {
		return err
	}
	if !found {
		_, err := q.commit(ctx, "forget", nil, []clientv3.Op{note}, nil)
		return err
	}
	ops := append(q.dropOwed(id), note, clientv3.OpDelete(key))
	if d.Body.Blob != "" {
		ops = append(ops, q.dropBlob(d.Body.Blob, id, "q"))
	} else {
		ops = append(ops, clientv3.OpDelete(q.key(keyBody, id)))
	}
	// Unless it is being replayed: then it is a call again, whose body stays.
	_, err = q.commit(ctx, "purge a dead letter", []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", version)}, ops, []clientv3.Op{note})
	return err
}
