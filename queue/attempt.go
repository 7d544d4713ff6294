package queue

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Lease is the right to attempt a call, and to write how it ended.
type Lease struct {
	Call  Call // as of the claim, its attempts counted
	Fence int64

	q    *Queue
	name string
	held context.Context // ends with the lease, as far as is known
	lost context.CancelFunc
}

// Context ends with ctx, or as soon as the lease may be lost or the call was
// cancelled, here or elsewhere. It must be cancelled when the attempt is over.
func (l *Lease) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	both, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(l.held, cancel)
	return both, func() { stop(); cancel(); l.q.over(l) }
}

// under notes that l's attempt is under way, and ends it where l is lost already.
func (q *Queue) under(l *Lease) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running[l.name] = l
	q.checkLease(l.name)
}

func (q *Queue) over(l *Lease) {
	l.lost()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running[l.name] == l {
		delete(q.running, l.name)
	}
}

// checkLease ends the attempt of a call whose lease is another's, or gone, in a
// picture that is new enough to tell. q.mu is held.
func (q *Queue) checkLease(id string) {
	if l := q.running[id]; l != nil && q.view.version >= l.Fence && q.view.leases[id].fence != l.Fence {
		l.lost()
	}
}

// Turn is a call whose turn it is. Claim it, or the others of its function wait.
type Turn struct {
	q       *Queue
	call    Call // as it was then: what the view has changes with the view
	lease   clientv3.LeaseID
	session context.Context
}

// Next gives the call whose turn it is. Without one it gives nil, and when there
// may be one by time alone, zero for never: Woken tells of all else.
func (q *Queue) Next() (*Turn, time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lease == 0 {
		return nil, time.Time{}
	}
	c, again := q.view.lines.take(q.cfg.Now())
	if c == nil {
		return nil, again
	}
	return &Turn{q: q, call: *c, lease: q.lease, session: q.session}, again
}

// Claim takes the call's lease. ErrFenced says that another has it, or that the
// call ended meanwhile.
func (t *Turn) Claim(ctx context.Context) (*Lease, error) {
	q, c := t.q, &t.call
	l := &Lease{Call: *c, q: q, name: c.ID}
	q.work(l.name)
	defer q.rest(l.name) // from then on it is among those running
	l.Call.Attempts++
	call := q.key(keyCall, c.ID)
	res, err := q.commit(ctx, "claim", []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(call), "=", c.version), absent(q.key(keyLease, c.ID)),
	}, []clientv3.Op{clientv3.OpPut(q.key(keyLease, c.ID), q.cfg.ID, clientv3.WithLease(t.lease)), put(call, &l.Call)}, nil)
	if err == nil && res.Succeeded {
		l.Fence = res.Header.Revision
		l.held, l.lost = context.WithCancel(t.session)
		q.under(l)
		return l, nil
	}
	if err == nil {
		err = ErrFenced
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.view.lines.give(c.ID, q.view.mine(c.By, c.ID), q.cfg.Now().Add(giveAfter))
	q.view.wake()
	return nil, err
}

// giveAfter is how long a call rests that could not be claimed: most likely the
// watch brings news of it.
const giveAfter = 50 * time.Millisecond

// Body reads a call's body where the record holds it.
func (q *Queue) Body(ctx context.Context, id string) ([]byte, error) {
	var b []byte
	_, found, err := q.get(ctx, "body", q.key(keyBody, id), &b)
	if err == nil && !found {
		err = notFound(id)
	}
	return b, err
}

func (l *Lease) holds() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(l.q.key(keyLease, l.name)), "=", l.Fence)
}

// Finish stores the call's one result and forgets the call. ErrFenced says that
// nothing was written. body is nil where r.Body names a blob.
func (l *Lease) Finish(ctx context.Context, r Result, body []byte) error {
	q, c := l.q, &l.Call
	now := q.cfg.Now()
	r.ID, r.Function, r.Owner, r.Sender, r.Deliver, r.Arrived = c.ID, c.Function, c.Owner, c.Sender, c.Deliver, c.Arrived
	r.Attempts, r.Ended, r.Until, r.Fence = c.Attempts, now.UnixMilli(), now.Add(q.cfg.Keep).UnixMilli(), l.Fence
	then := append(q.end(c), q.store(&r, body)...)
	then = append(then, q.owe(c, now, false)...)
	res, err := q.persist(ctx, "store a result", append(q.once(c.ID), l.holds()), then)
	if err != nil || res.Succeeded {
		return err
	}
	var was Result // of an earlier try, of whose outcome we were not told
	if _, found, err := q.get(ctx, "result", q.key(keyResult, c.ID), &was); err != nil {
		return err
	} else if found && was.Fence == l.Fence {
		return nil
	}
	return ErrFenced
}

// once are the conditions under which a result may be written at all.
func (q *Queue) once(id string) []clientv3.Cmp {
	return []clientv3.Cmp{absent(q.key(keyResult, id)), present(q.key(keyCall, id))}
}

// store writes a result.
func (q *Queue) store(r *Result, body []byte) []clientv3.Op {
	ops := []clientv3.Op{put(q.key(keyResult, r.ID), r), q.remember(r.Until, "result", r.ID)}
	if r.Body.Blob != "" {
		return append(ops, q.useBlob(r.Body.Blob, r.ID, "r"))
	}
	if len(body) > 0 {
		ops = append(ops, clientv3.OpPut(q.key(keyReply, r.ID), string(body)))
	}
	return ops
}

// end forgets a call, its lease and its body.
func (q *Queue) end(c *Call) []clientv3.Op {
	ops := []clientv3.Op{clientv3.OpDelete(q.key(keyCall, c.ID)), clientv3.OpDelete(q.key(keyLease, c.ID))}
	if c.Body.Blob != "" {
		return append(ops, q.dropBlob(c.Body.Blob, c.ID, "q"))
	}
	return append(ops, clientv3.OpDelete(q.key(keyBody, c.ID)))
}

// persist commits what a call's outcome depends on, again where the store did not
// answer: the conditions make a repetition harmless.
func (q *Queue) persist(ctx context.Context, what string, cmps []clientv3.Cmp, then []clientv3.Op) (*clientv3.TxnResponse, error) {
	for pause := 50 * time.Millisecond; ; pause *= 2 {
		res, err := q.commit(ctx, what, cmps, then, nil)
		if err == nil || api.CodeOf(err) != api.CodeUnavailable || pause > 2*time.Second || !sleep(ctx, pause) {
			return res, err
		}
	}
}

// Again gives the call back, to be attempted at a later time.
func (l *Lease) Again(ctx context.Context, at time.Time, why Failure) error {
	c := l.Call
	c.NotUntil, c.Last = at.UnixMilli(), &why
	key := l.q.key(keyCall, c.ID)
	res, err := l.q.persist(ctx, "postpone a call", []clientv3.Cmp{present(key), l.holds()},
		[]clientv3.Op{put(key, &c), clientv3.OpDelete(l.q.key(keyLease, l.name))})
	return fenced(res, err)
}

// Unbegun gives the call back as if it had not been claimed.
func (l *Lease) Unbegun(ctx context.Context, at time.Time, why Failure) error {
	l.Call.Attempts--
	return l.Again(ctx, at, why)
}

func fenced(res *clientv3.TxnResponse, err error) error {
	if err == nil && !res.Succeeded {
		return ErrFenced
	}
	return err
}

// Bury moves the call to the dead letters.
func (l *Lease) Bury(ctx context.Context, why Failure) error {
	return l.q.bury(ctx, &l.Call, why, append(l.q.once(l.Call.ID), l.holds()))
}

func (q *Queue) bury(ctx context.Context, c *Call, why Failure, cmps []clientv3.Cmp) error {
	now := q.cfg.Now()
	d := Dead{Call: *c, Failure: why, Until: now.Add(q.cfg.KeepDead).UnixMilli()}
	then := append([]clientv3.Op{
		clientv3.OpDelete(q.key(keyCall, c.ID)), clientv3.OpDelete(q.key(keyLease, c.ID)),
		put(q.key(keyDead, c.ID), &d), q.remember(d.Until, "dead", c.ID),
	}, q.owe(c, now, true)...)
	return fenced(q.persist(ctx, "bury a call", append(cmps, absent(q.key(keyDead, c.ID))), then))
}

// BuryExpired buries what expired while it waited here.
func (q *Queue) BuryExpired(ctx context.Context) (int, error) {
	now, n := q.cfg.Now(), 0
	var due []Call
	q.mu.Lock()
	for id, c := range q.view.calls {
		if c.leased == 0 && c.expired(now) && q.view.mine(c.By, id) {
			due = append(due, *c)
		}
	}
	q.mu.Unlock()
	for i := range due {
		c := &due[i]
		why := Failure{Code: api.CodeDeadline, Message: "it expired while it waited", At: now.UnixMilli()}
		if c.Last != nil {
			why.Message += "; the last attempt failed: " + string(c.Last.Code) + ": " + c.Last.Message
		}
		err := q.bury(ctx, c, why, append(q.once(c.ID), absent(q.key(keyLease, c.ID)),
			clientv3.Compare(clientv3.ModRevision(q.key(keyCall, c.ID)), "=", c.version)))
		switch {
		case err == nil:
			n++
		case err != ErrFenced:
			return n, err
		}
	}
	return n, nil
}

// Cancel ends a call that waits or runs: its result is that it was cancelled, and
// whatever an attempt under way comes to is not stored.
func (q *Queue) Cancel(ctx context.Context, id string) error {
	var c Call
	_, found, err := q.get(ctx, "call", q.key(keyCall, id), &c)
	if err != nil {
		return err
	}
	if !found {
		return notFound(id)
	}
	now := q.cfg.Now()
	r := Result{ID: id, Function: c.Function, Owner: c.Owner, Sender: c.Sender, Deliver: c.Deliver, Attempts: c.Attempts, Arrived: c.Arrived,
		Ended: now.UnixMilli(), Until: now.Add(q.cfg.Keep).UnixMilli(),
		Failed: &Failure{Code: api.CodeCancelled, Message: "the call was cancelled", At: now.UnixMilli()}}
	err = fenced(q.persist(ctx, "cancel a call", q.once(id), append(q.end(&c), q.store(&r, nil)...)))
	if err != ErrFenced {
		return err
	}
	var was Result // of an earlier try, of whose outcome we were not told
	_, found, err = q.get(ctx, "result", q.key(keyResult, id), &was)
	switch {
	case err != nil:
		return err
	case found && was.Failed != nil && *was.Failed == *r.Failed:
		return nil
	}
	return notFound(id)
}
