package queue

import (
	"context"
	"errors"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// RemovePlan forgets a plan with the ticks that are left of it. Calls that were made
// go on.
func (q *Queue) RemovePlan(ctx context.Context, id string) error {
	for range 8 {
		p, err := q.readPlan(ctx, id)
		if err != nil {
			return err
		}
		until := q.cfg.Now().Add(goneFor).UnixMilli()
		err = q.dropPlan(ctx, &p, clientv3.OpPut(q.key(keyGone, id), ""), q.remember(until, untilGone, id))
		if !errors.Is(err, ErrFenced) {
			return err
		}
	}
	return api.Errorf(api.CodeConflict, "the schedule changes all the time")
}

func (q *Queue) dropPlan(ctx context.Context, p *Plan, then ...clientv3.Op) error {
	then = append(then, clientv3.OpDelete(q.key(keyPlan, p.ID)), clientv3.OpDelete(q.key(keyCursor, p.ID)))
	for _, part := range p.Parts {
		then = append(then, clientv3.OpDelete(q.key(keyTick, part.ID+"/"), clientv3.WithPrefix()))
	}
	return fenced(q.commit(ctx, "remove a schedule", q.at(p), then, nil))
}

// forgetTicks drops what is over of plans.
func (q *Queue) forgetTicks(ctx context.Context, kind, id string, note clientv3.Op) error {
	switch kind {
	case untilPart:
		// Committed ones have lost their note, in the same step.
		_, err := q.commit(ctx, "forget an upload", []clientv3.Cmp{present(string(note.KeyBytes()))}, q.dropPart(id, string(note.KeyBytes())), nil)
		return err
	case untilPlan:
		p, err := q.readPlan(ctx, id)
		switch {
		case api.CodeOf(err) == api.CodeNotFound || err == nil && p.Until()+q.cfg.KeepDead.Milliseconds() > q.cfg.Now().UnixMilli():
			_, err = q.commit(ctx, "forget", nil, []clientv3.Op{note}, nil)
		case err == nil:
			err = q.dropPlan(ctx, &p, note)
		}
		if errors.Is(err, ErrFenced) {
			return nil // it goes on: looked at again
		}
		return err
	}
	_, err := q.commit(ctx, "forget", nil, []clientv3.Op{note, clientv3.OpDelete(q.key(keyGone, id))}, nil)
	return err
}
