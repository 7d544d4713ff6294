package queue

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// How an upload becomes a part of a plan.
const (
	PlanNew     = "new"     // there is none of its id
	PlanAppend  = "append"  // its ticks come after all those that are there
	PlanReplace = "replace" // its ticks take the place of those that have not been made
)

// Commit makes what was added a part of the plan, durably, and gives the plan as it
// is then. CodeConflict tells of a plan that is there, or does not go with mode,
// CodeForbidden of one that is another's, CodeBusy and CodeTooLarge of the bounds.
func (u *Upload) Commit(ctx context.Context, p Plan, mode string) (Plan, error) {
	if u.part.Ticks == 0 {
		return p, api.Invalid("body", "seal for a longer time (--for)", "there is no tick in it")
	}
	if err := u.flush(ctx); err != nil {
		return p, err
	}
	for range 8 { // ticks are made meanwhile
		next, cmps, then, err := u.join(ctx, p, mode)
		if err != nil {
			return p, err
		}
		next.Stored = u.q.cfg.Now().UnixMilli()
		cmps = append(cmps, present(u.note), absent(u.q.key(keyGone, p.ID)))
		then = append(then, clientv3.OpDelete(u.note), put(u.q.key(keyPlan, p.ID), next), put(u.q.key(keyCursor, p.ID), next.Cursor),
			u.q.remember(next.Until()+u.q.cfg.KeepDead.Milliseconds(), untilPlan, p.ID))
		res, err := u.q.commit(ctx, "store a schedule", cmps, then, nil)
		if err != nil {
			return p, err
		}
		if res.Succeeded {
			next.version, next.Cursor.version = res.Header.Revision, res.Header.Revision
			return next, nil
		}
	}
	return p, api.Errorf(api.CodeConflict, "the schedule changes all the time, was removed a moment ago, or its ticks came too slowly")
}

// join decides what the plan will be, and what must hold for that.
func (u *Upload) join(ctx context.Context, p Plan, mode string) (Plan, []clientv3.Cmp, []clientv3.Op, error) {
	q := u.q
	old, err := q.readPlan(ctx, p.ID)
	if mode == PlanNew {
		if err == nil {
			e := api.Errorf(api.CodeConflict, "there is a schedule %q already", p.ID)
			e.Field, e.Remedy = "id", "continue it (top-up), replace it (top-up --replace), or remove it first"
			return p, nil, nil, e
		}
		if api.CodeOf(err) != api.CodeNotFound {
			return p, nil, nil, err
		}
		p.Parts, p.Cursor = []Part{u.part}, Cursor{Next: u.part.First, Left: u.part.Ticks}
		return p, []clientv3.Cmp{absent(q.key(keyPlan, p.ID))}, nil, q.planRoom(&p)
	}
	switch {
	case err != nil:
		return p, nil, nil, err
	case old.Maker != p.Maker:
		return p, nil, nil, api.Errorf(api.CodeForbidden, "the schedule is another caller's")
	case old.Function != p.Function:
		return p, nil, nil, api.Invalid("function", "name "+old.Function.Short(), "the schedule is of another function")
	}
	cmps, cursor := q.at(&old), old.Cursor
	var then []clientv3.Op
	if mode == PlanAppend {
		if u.part.First <= max(old.Until(), cursor.Last) {
			e := api.Errorf(api.CodeConflict, "the ticks do not begin after the last one that is there")
			e.Field, e.Remedy = "body", "ask how far the schedule is, and seal what comes after that"
			return p, nil, nil, e
		}
		p.Parts = append(old.live(), u.part)
		if cursor.Left += u.part.Ticks; cursor.Next == 0 {
			cursor.Next = u.part.First
		}
		if len(p.Parts) > q.cfg.Plans.Parts {
			return p, nil, nil, api.Invalid("body", "seal it anew, for longer at once (top-up --replace --for)", fmt.Sprintf("the schedule has %d parts already", q.cfg.Plans.Parts))
		}
		p.Cursor = cursor
		return p, cmps, then, q.planRoom(&p)
	}
	for _, part := range old.Parts {
		then = append(then, clientv3.OpDelete(q.key(keyTick, part.ID+"/"), clientv3.WithPrefix()))
	}
	p.Parts, p.Cursor = []Part{u.part}, cursor
	p.Cursor.Next, p.Cursor.Why = u.part.First, nil
	over, err := q.countTicks(ctx, &p, cursor.Last)
	if err != nil {
		return p, nil, nil, err
	}
	p.Cursor.Left = u.part.Ticks - over
	if p.Cursor.Next, err = q.nextTick(ctx, &p, cursor.Last); err != nil {
		return p, nil, nil, err
	}
	if p.Cursor.Next == 0 {
		return p, nil, nil, api.Invalid("body", "seal ticks to come", "all its ticks have been made")
	}
	if over > 0 {
		then = append(then, clientv3.OpDelete(q.tickKey(u.part.ID, 0), clientv3.WithRange(q.tickKey(u.part.ID, cursor.Last+1))))
	}
	return p, cmps, then, q.planRoom(&p)
}

// readPlan reads a plan from the store.
func (q *Queue) readPlan(ctx context.Context, id string) (Plan, error) {
	var p Plan
	version, found, err := q.get(ctx, "schedule", q.key(keyPlan, id), &p)
	if err == nil && (!found || len(p.Parts) == 0) {
		err = noPlan(id)
	}
	if err != nil {
		return p, err
	}
	p.version = version
	p.Cursor.version, found, err = q.get(ctx, "cursor", q.key(keyCursor, id), &p.Cursor)
	if err == nil && !found {
		err = noPlan(id)
	}
	return p, err
}

// planRoom refuses a plan that is over a bound, as it would be.
func (q *Queue) planRoom(p *Plan) error {
	b := &q.cfg.Plans
	ticks, size := p.Held()
	switch {
	case ticks > b.Ticks:
		return tooMuch("with what is there it has over %d ticks", b.Ticks)
	case size > b.Size:
		return tooMuch("with what is there its sealed ticks have over %d bytes", b.Size)
	}
	total, makers, owners := size, size, size
	maker, owner := 1, 1
	for _, o := range q.Plans(func(o *Plan) bool { return o.ID != p.ID }) {
		_, n := o.Held()
		total += n
		if o.Maker == p.Maker {
			maker, makers = maker+1, makers+n
		}
		if o.Owner == p.Owner {
			owner, owners = owner+1, owners+n
		}
	}
	switch {
	case maker > b.Each || owner > b.Each:
		return planFull("there are %d schedules of this caller, or of this owner's functions, already", b.Each)
	case makers > b.Bytes || owners > b.Bytes:
		return planFull("schedules of this caller, or of this owner's functions, would have over %d bytes", b.Bytes)
	case total > b.Total:
		return planFull("schedules fill their %d bytes of the store", b.Total)
	}
	return nil
}

func planFull(format string, args ...any) error {
	e := api.Errorf(api.CodeBusy, format, args...)
	e.Remedy = "remove schedules that are not needed (faasd-sec schedule list, remove), or seal for a shorter time"
	return e
}
