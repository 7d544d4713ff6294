package queue

import (
	"context"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Tick reads the sealed message of the plan's next tick. ErrFenced says that
// another coordinator was here meanwhile.
func (q *Queue) Tick(ctx context.Context, p *Plan) ([]byte, error) {
	for _, part := range p.live() {
		if p.Cursor.Next < part.First || p.Cursor.Next > part.Last {
			continue
		}
		var b []byte
		_, found, err := q.get(ctx, "sealed tick", q.tickKey(part.ID, p.Cursor.Next), &b)
		if err != nil || found {
			return b, err
		}
	}
	return nil, ErrFenced
}

// Make accepts the call of the plan's next tick, as Accept does, and moves the plan
// on. ErrFenced says that another did, or that the plan was changed: nothing was
// written. CodeBusy tells that too many calls wait, CodeConflict of an id that is
// taken.
func (q *Queue) Make(ctx context.Context, p *Plan, c Call, body []byte) error {
	c.By, c.Arrived, c.Attempts = q.cfg.ID, q.cfg.Now().UnixMilli(), 0
	q.mu.Lock()
	err := q.view.room(c.Owner)
	q.mu.Unlock()
	if err != nil {
		return err
	}
	cmps, then, err := q.write(&c, body)
	if err != nil {
		return err
	}
	next := p.Cursor
	next.Made, next.Why = next.Made+1, nil
	moved, err := q.move(ctx, p, next, p.Cursor.Next, 1, cmps, then)
	if err != nil || moved {
		return err
	}
	// Either the plan moved, or the id is taken.
	var now Cursor
	version, found, err := q.get(ctx, "cursor", q.key(keyCursor, p.ID), &now)
	if err == nil && found && version == p.Cursor.version {
		if _, err = q.State(ctx, c.ID); err == nil {
			return taken(c.ID)
		}
	}
	return ErrFenced
}

// Pass moves the plan over all its ticks up to a time, in unix milliseconds, without
// calls. why is nil for ticks that were missed; they are returned as a number.
// ErrFenced is that of Make.
func (q *Queue) Pass(ctx context.Context, p *Plan, until int64, why *Failure) (int, error) {
	n, err := q.countTicks(ctx, p, until)
	if err != nil {
		return 0, err
	}
	next := p.Cursor
	if next.Why = why; why == nil {
		next.Missed += int64(n)
	} else {
		next.Refused += int64(n)
	}
	moved, err := q.move(ctx, p, next, until, n, nil, nil)
	if err == nil && !moved {
		err = ErrFenced
	}
	return n, err
}

// move commits next as the plan's cursor with what belongs to it, and forgets the n
// ticks up to a time. With it p is as the store has it.
func (q *Queue) move(ctx context.Context, p *Plan, next Cursor, until int64, n int, cmps []clientv3.Cmp, then []clientv3.Op) (bool, error) {
	following, err := q.nextTick(ctx, p, until)
	if err != nil {
		return false, err
	}
	next.Last, next.Next, next.Left = until, following, max(next.Left-n, 0)
	if following == 0 {
		next.Left = 0
	}
	cmps = append(cmps, q.at(p)...)
	then = append(then, put(q.key(keyCursor, p.ID), next))
	for _, part := range p.live() {
		if part.First <= until {
			then = append(then, clientv3.OpDelete(q.tickKey(part.ID, 0), clientv3.WithRange(q.tickKey(part.ID, until+1))))
		}
	}
	res, err := q.commit(ctx, "move a schedule on", cmps, then, nil)
	if err != nil || !res.Succeeded {
		return false, err
	}
	next.version = res.Header.Revision
	p.Cursor = next
	return true, nil
}

// at demands that a plan and its cursor are as they were read.
func (q *Queue) at(p *Plan) []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(q.key(keyPlan, p.ID)), "=", p.version),
		clientv3.Compare(clientv3.ModRevision(q.key(keyCursor, p.ID)), "=", p.Cursor.version),
	}
}

// nextTick finds the first tick after a time, 0 for none.
func (q *Queue) nextTick(ctx context.Context, p *Plan, after int64) (int64, error) {
	for _, part := range p.Parts {
		if part.Last <= after {
			continue
		}
		rctx, cancel := q.bound(ctx)
		res, err := q.etc.Get(rctx, q.tickKey(part.ID, after+1), clientv3.WithRange(q.partEnd(part.ID)), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		cancel()
		if err != nil {
			return 0, failure("look for the next tick", err)
		}
		if len(res.Kvs) == 0 {
			continue
		}
		text := string(res.Kvs[0].Key[len(q.key(keyTick, part.ID+"/")):])
		at, err := strconv.ParseInt(text, 16, 64)
		if err != nil {
			return 0, api.Wrap(api.CodeInternal, err, "a tick's record is damaged")
		}
		return at, nil
	}
	return 0, nil
}

// countTicks counts the ticks up to a time.
func (q *Queue) countTicks(ctx context.Context, p *Plan, until int64) (int, error) {
	n := 0
	for _, part := range p.live() {
		if part.First > until {
			break
		}
		rctx, cancel := q.bound(ctx)
		res, err := q.etc.Get(rctx, q.tickKey(part.ID, 0), clientv3.WithRange(q.tickKey(part.ID, until+1)), clientv3.WithCountOnly())
		cancel()
		if err != nil {
			return 0, failure("count ticks", err)
		}
		n += int(res.Count)
	}
	return n, nil
}

func (q *Queue) partEnd(part string) string {
	return clientv3.GetPrefixRangeEnd(q.key(keyTick, part+"/"))
}
