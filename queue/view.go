package queue

import (
	"context"
	"encoding/json"
	"errors"
	"hash/fnv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// view is what is watched, in memory: all calls that wait or run, without their
// bodies. The queue's mutex guards it.
type view struct {
	cfg        *Config
	version    int64
	calls      map[string]*Call
	deliveries map[string]*Delivery
	members    map[string]bool
	leases     map[string]holder // by call, and by "d/" and call for deliveries
	owners     map[string]int    // calls, by owner
	plans      map[string]Plan   // without their cursors
	cursors    map[string]Cursor // by plan
	lines      lines
	woken      chan struct{} // has an element when there may be something to do
	owing      chan struct{} // likewise, of callbacks
}

// holder is who runs a call.
type holder struct {
	by    string
	fence int64
}

// deliveryLease is before a call's id in the name of a delivery's lease. No call's id
// has a slash: whoever sends a call may choose that.
const deliveryLease = "d/"

func (v *view) init(cfg *Config) {
	v.cfg = cfg
	if v.woken == nil {
		v.woken, v.owing = make(chan struct{}, 1), make(chan struct{}, 1)
	}
	v.calls, v.deliveries, v.members = map[string]*Call{}, map[string]*Delivery{}, map[string]bool{}
	v.leases, v.owners = map[string]holder{}, map[string]int{}
	v.plans, v.cursors = map[string]Plan{}, map[string]Cursor{}
	v.lines.init(cfg.PerFunction)
}

func (v *view) wake() {
	for _, c := range []chan struct{}{v.woken, v.owing} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Woken has an element whenever there may be something new to do.
func (q *Queue) Woken() <-chan struct{} { return q.view.woken }

// Owing is Woken for callbacks.
func (q *Queue) Owing() <-chan struct{} { return q.view.owing }

// Wake has Woken tell that there may be something to do.
func (q *Queue) Wake() { q.view.wake() }

// Run keeps the queue current until ctx ends. It registers the coordinator,
// follows the others' work and forgets what is over.
func (q *Queue) Run(ctx context.Context) error {
	if q.Ready() != nil && !q.retry(ctx, q.begin) {
		return nil
	}
	ended := make(chan struct{}, 4)
	go func() { q.keepCount(ctx); ended <- struct{}{} }()
	go func() { q.forgetOld(ctx); ended <- struct{}{} }()
	go func() { _ = q.keepSession(ctx); ended <- struct{}{} }()
	go func() { q.freeOrphans(ctx); ended <- struct{}{} }()
	for ctx.Err() == nil {
		err := q.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		if !errors.Is(err, rpctypes.ErrCompacted) {
			q.cfg.Log.Warn("watch of asynchronous calls broke; reading again", "err", err)
		}
		q.retry(ctx, q.reload)
	}
	for range cap(ended) {
		<-ended
	}
	return nil
}

// retry reads until it succeeds; it reports false where ctx ended before.
func (q *Queue) retry(ctx context.Context, read func(context.Context) error) bool {
	for pause := 50 * time.Millisecond; sleep(ctx, pause); pause = min(2*pause, 2*time.Second) {
		err := read(ctx)
		if err == nil {
			return true
		}
		q.cfg.Log.Warn("asynchronous calls not read", "again_in", pause, "err", err)
	}
	return false
}

// reload reads all that is watched.
func (q *Queue) reload(ctx context.Context) error {
	prefix := q.cfg.Prefix + keyWatched
	from, end, rev := prefix, clientv3.GetPrefixRangeEnd(prefix), int64(0)
	var all []*mvccpb.KeyValue
	for {
		page, cancel := q.bound(ctx)
		res, err := q.etc.Get(page, from, clientv3.WithRange(end), clientv3.WithLimit(1000), clientv3.WithRev(rev))
		cancel()
		if err != nil {
			return failure("read asynchronous calls", err)
		}
		if rev == 0 {
			rev = res.Header.Revision
		}
		all = append(all, res.Kvs...)
		if !res.More {
			break
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.view.init(&q.cfg)
	q.begun, q.view.version = true, rev
	for _, kv := range all {
		q.apply(kv.Key, kv.Value, kv)
	}
	for id := range q.running {
		q.checkLease(id)
	}
	q.view.wake()
	return nil
}

func (q *Queue) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	q.mu.Lock()
	from := q.view.version + 1
	q.mu.Unlock()
	for res := range q.etc.Watch(ctx, q.cfg.Prefix+keyWatched, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := res.Err(); err != nil {
			return err
		}
		q.mu.Lock()
		for _, e := range res.Events {
			kv := e.Kv
			if e.Type == clientv3.EventTypeDelete {
				kv = nil
			}
			q.view.version = e.Kv.ModRevision
			q.apply(e.Kv.Key, e.Kv.Value, kv)
		}
		q.view.wake()
		q.mu.Unlock()
	}
	return errors.New("the watch was closed")
}

// apply takes one change over; kv is nil for a deletion. q.mu is held.
func (q *Queue) apply(key, value []byte, kv *mvccpb.KeyValue) {
	name := string(key[len(q.cfg.Prefix):])
	v := &q.view
	switch {
	case strings.HasPrefix(name, keyCall):
		id := name[len(keyCall):]
		v.dropCall(id)
		if kv == nil {
			return
		}
		c := &Call{}
		if err := json.Unmarshal(value, c); err != nil || c.ID != id {
			q.cfg.Log.Error("asynchronous call left out: its record is damaged", "call", id, "err", err)
			return
		}
		c.version = kv.ModRevision
		v.addCall(c)
	case strings.HasPrefix(name, keyDelivery):
		id := name[len(keyDelivery):]
		delete(v.deliveries, id)
		if kv == nil {
			return
		}
		d := &Delivery{}
		if err := json.Unmarshal(value, d); err != nil || d.ID != id {
			q.cfg.Log.Error("callback left out: its record is damaged", "call", id, "err", err)
			return
		}
		d.version = kv.ModRevision
		h := v.leases[deliveryLease+id]
		d.leased, d.leasedBy = h.fence, h.by
		v.deliveries[id] = d
	case strings.HasPrefix(name, keyLease):
		id := name[len(keyLease):]
		if kv == nil {
			delete(v.leases, id)
		} else {
			v.leases[id] = holder{string(value), kv.CreateRevision}
		}
		v.leaseChanged(id)
		q.checkLease(id)
	case strings.HasPrefix(name, keyPlan), strings.HasPrefix(name, keyCursor):
		q.applyPlan(name, value, kv)
	case strings.HasPrefix(name, keyMember):
		id := name[len(keyMember):]
		was := v.members[id]
		if kv == nil {
			delete(v.members, id)
		} else {
			v.members[id] = true
		}
		if was != v.members[id] {
			v.sortAgain()
		}
	}
}

func (v *view) addCall(c *Call) {
	h := v.leases[c.ID]
	c.leased, c.leasedBy = h.fence, h.by
	v.calls[c.ID] = c
	v.owners[c.Owner]++
	v.lines.add(c, v.mine(c.By, c.ID))
}

func (v *view) dropCall(id string) {
	c := v.calls[id]
	if c == nil {
		return
	}
	delete(v.calls, id)
	if v.owners[c.Owner]--; v.owners[c.Owner] <= 0 {
		delete(v.owners, c.Owner)
	}
	v.lines.remove(c)
}

func (v *view) leaseChanged(name string) {
	h := v.leases[name]
	if id, ok := strings.CutPrefix(name, deliveryLease); ok {
		if d := v.deliveries[id]; d != nil {
			d.leased, d.leasedBy = h.fence, h.by
		}
		return
	}
	if c := v.calls[name]; c != nil {
		v.lines.remove(c)
		c.leased, c.leasedBy = h.fence, h.by
		v.lines.add(c, v.mine(c.By, c.ID))
	}
}

// sortAgain decides anew whose the calls are.
func (v *view) sortAgain() {
	v.lines.init(v.cfg.PerFunction)
	for _, c := range v.calls {
		v.lines.add(c, v.mine(c.By, c.ID))
	}
}

// mine reports whether a call is this coordinator's to attempt: who accepted it
// does; where that one is gone, one of the others, on whom they all agree.
func (v *view) mine(by, id string) bool {
	if by == v.cfg.ID || v.members[by] {
		return by == v.cfg.ID
	}
	best, who := uint64(0), ""
	for m := range v.members {
		h := fnv.New64a()
		_, _ = h.Write([]byte(m + "/" + id))
		if s := h.Sum64(); who == "" || s > best || s == best && m < who {
			best, who = s, m
		}
	}
	return who == "" || who == v.cfg.ID
}

// room refuses a call for which there is none. q.mu is held.
func (v *view) room(owner string) error {
	switch {
	case v.owners[owner] >= v.cfg.MaxWaitingEach:
		e := api.Errorf(api.CodeBusy, "%d asynchronous calls of this owner's functions wait already", v.owners[owner])
		e.Remedy = "retry later, or have the operator raise -async-waiting-each"
		return e
	case len(v.calls) >= v.cfg.MaxWaiting:
		e := api.Errorf(api.CodeBusy, "%d asynchronous calls wait already", len(v.calls))
		e.Remedy = "retry later, or have the operator raise -async-waiting"
		return e
	}
	return nil
}
