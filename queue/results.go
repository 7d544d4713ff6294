package queue

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// State is what is known of a call; at most one field is set, and none of one
// that nobody knows.
type State struct {
	Waiting *Call // it waits or runs
	Result  *Result
	Dead    *Dead
}

// State looks a call up.
func (q *Queue) State(ctx context.Context, id string) (State, error) {
	ctx, cancel := q.bound(ctx)
	defer cancel()
	res, err := q.etc.Txn(ctx).Then(clientv3.OpGet(q.key(keyCall, id)), clientv3.OpGet(q.key(keyResult, id)),
		clientv3.OpGet(q.key(keyDead, id)), clientv3.OpGet(q.key(keyLease, id))).Commit()
	if err != nil {
		return State{}, failure("look a call up", err)
	}
	var s State
	read := func(i int, into any) bool {
		kvs := res.Responses[i].GetResponseRange().Kvs
		if len(kvs) == 0 || err != nil {
			return false
		}
		err = json.Unmarshal(kvs[0].Value, into)
		return err == nil
	}
	var c Call
	var r Result
	var d Dead
	switch {
	case read(0, &c):
		if l := res.Responses[3].GetResponseRange().Kvs; len(l) > 0 {
			c.leased, c.leasedBy = l[0].CreateRevision, string(l[0].Value)
		}
		s.Waiting = &c
	case read(1, &r):
		s.Result = &r
	case read(2, &d):
		s.Dead = &d
	case err == nil:
		return s, notFound(id)
	}
	if err != nil {
		return State{}, api.Wrap(api.CodeInternal, err, "the record of call "+id+" is damaged")
	}
	return s, nil
}

// Reply reads a result's body where the record holds it.
func (q *Queue) Reply(ctx context.Context, id string) ([]byte, error) {
	var b []byte
	_, _, err := q.get(ctx, "result's body", q.key(keyReply, id), &b)
	return b, err
}

// Forget drops a result.
func (q *Queue) Forget(ctx context.Context, r *Result) error {
	return q.forget(ctx, r.ID, clientv3.OpDelete(q.untilKey(r.Until, "result", r.ID)))
}

func (q *Queue) forget(ctx context.Context, id string, note clientv3.Op) error {
	var r Result
	key := q.key(keyResult, id)
	_, found, err := q.get(ctx, "result", key, &r)
	if err != nil {
		return err
	}
	ops := []clientv3.Op{note}
	if found {
		ops = append(append(ops, q.dropOwed(id)...), clientv3.OpDelete(key), clientv3.OpDelete(q.key(keyReply, id)))
		if r.Body.Blob != "" {
			ops = append(ops, q.dropBlob(r.Body.Blob, id, "r"))
		}
	}
	_, err = q.commit(ctx, "forget a result", nil, ops, nil)
	return err
}

// Filter chooses calls for a list.
type Filter struct {
	Function api.FunctionName // "" for all
	Owner    string           // fingerprint, of the function's owner or the sender; "" for all
	Plain    bool             // those of plain functions too
	After    string           // id, exclusive, where a former page of dead letters ended
	Limit    int
}

func (f *Filter) takes(fn api.FunctionName, owner, sender string) bool {
	return (f.Function == "" || fn == f.Function) && (f.Owner == "" || owner == f.Owner || sender == f.Owner || f.Plain && sender == "")
}

// Waiting lists what waits or runs, as this coordinator's picture has it: by
// priority, then by arrival.
func (q *Queue) Waiting(f Filter) []Call {
	q.mu.Lock()
	var out []Call
	for _, c := range q.view.calls {
		if f.takes(c.Function, c.Owner, c.Sender) {
			out = append(out, *c)
		}
	}
	q.mu.Unlock()
	slices.SortFunc(out, func(a, b Call) int {
		switch {
		case a.Priority != b.Priority:
			return b.Priority - a.Priority
		case a.Arrived != b.Arrived:
			return int(a.Arrived - b.Arrived)
		}
		return strings.Compare(a.ID, b.ID)
	})
	if f.Limit > 0 && len(out) > f.Limit {
		out = out[:f.Limit]
	}
	return out
}

// list visits records of one kind, in the order of their ids.
func (q *Queue) list(ctx context.Context, kind, after string, visit func(value []byte) (more bool, err error)) error {
	prefix := q.cfg.Prefix + kind
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	if after != "" {
		from = prefix + after + "\x00"
	}
	for {
		page, cancel := q.bound(ctx)
		res, err := q.etc.Get(page, from, clientv3.WithRange(end), clientv3.WithLimit(200))
		cancel()
		if err != nil {
			return failure("list", err)
		}
		for _, kv := range res.Kvs {
			if more, err := visit(kv.Value); err != nil || !more {
				return err
			}
		}
		if !res.More {
			return nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}
