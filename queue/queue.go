package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// The records, below Config.Prefix. What all coordinators watch is below w/ and
// small; bodies and results are elsewhere.
const (
	keyCall     = "w/call/"     // ID: Call, while it waits or runs
	keyLease    = "w/lease/"    // ID: who runs it; ends with its etcd lease
	keyDelivery = "w/delivery/" // ID: Delivery
	keyMember   = "w/member/"   // coordinator: its etcd lease, with which it ends
	keyPlan     = "w/plan/"     // ID: Plan
	keyCursor   = "w/cursor/"   // ID: Cursor, how far a Plan is
	keyWatched  = "w/"
	keyBody     = "body/"   // ID: the request's body, if it is small
	keyResult   = "result/" // ID: Result
	keyReply    = "reply/"  // ID: the result's body, if it is small
	keyDead     = "dead/"   // ID: Dead
	keyIdem     = "idem/"   // hash of function, scope and key: idem
	keyBlob     = "blob/"   // DIGEST/ID-q or -r: a use of a blob
	keyCallback = "key/"    // FINGERPRINT: api.CallbackKey
	keyUntil    = "until/"  // TIME/KIND/ID: what is to be forgotten then
	keyTick     = "tick/"   // PART/TIME: a sealed message of a Plan
	keyGone     = "gone/"   // ID: of a Plan that was removed a short while ago
)

// Queue is one coordinator's part of the calls of the cluster. Make it with Open;
// Run keeps it current. It is safe for concurrent use.
type Queue struct {
	cfg Config
	etc *clientv3.Client

	mu      sync.Mutex
	lease   clientv3.LeaseID // of this coordinator, 0 while it has none
	session context.Context  // ends with the lease
	begun   bool             // the calls have been read
	dead    int64            // dead letters when they were counted last; -1 before
	view    view
	running map[string]*Lease // attempts under way, by call
	busy    map[string]int    // claims and callbacks under way, by the name of the lease
}

// ErrFenced means that the lease under which something was to be written is
// another's by now, or that the call has ended: nothing was written.
var ErrFenced = errors.New("queue: the lease is gone")

// Open reads what waits. A former life of the same coordinator loses its leases.
// Where the store does not answer the queue opens all the same: Run reads as soon as
// it does, and until then Ready tells so and no call is accepted.
func Open(ctx context.Context, etcd *clientv3.Client, cfg Config) (*Queue, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	q := &Queue{cfg: cfg, etc: etcd, dead: -1, running: map[string]*Lease{}, busy: map[string]int{}}
	q.view.init(&cfg)
	if err := q.begin(ctx); api.CodeOf(err) == api.CodeUnavailable {
		cfg.Log.Warn("asynchronous calls not read: none are taken until the store answers", "err", err)
	} else if err != nil {
		return nil, err
	}
	return q, nil
}

// begin reads what waits. It comes before the coordinator's own lease.
func (q *Queue) begin(ctx context.Context) error {
	if err := q.retireFormer(ctx); err != nil {
		return err
	}
	return q.reload(ctx)
}

// Ready tells why no call is accepted; nil if they are.
func (q *Queue) Ready() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ready()
}

// ready is Ready. q.mu is held.
func (q *Queue) ready() error {
	if q.begun {
		return nil
	}
	e := api.Errorf(api.CodeUnavailable, "the asynchronous calls that wait are not known yet: the store has not answered since this coordinator started")
	e.Remedy = "retry later; see whether the other coordinators run"
	return e
}

func (q *Queue) key(kind, id string) string { return q.cfg.Prefix + kind + id }

func (q *Queue) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, q.cfg.Timeout)
}

// commit runs one transaction within its time.
func (q *Queue) commit(ctx context.Context, what string, cmps []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := q.bound(ctx)
	defer cancel()
	res, err := q.etc.Txn(ctx).If(cmps...).Then(then...).Else(otherwise...).Commit()
	return res, failure(what, err)
}

// get reads one record; found is false where there is none.
func (q *Queue) get(ctx context.Context, what, key string, into any) (version int64, found bool, err error) {
	ctx, cancel := q.bound(ctx)
	defer cancel()
	res, err := q.etc.Get(ctx, key)
	if err != nil {
		return 0, false, failure("read "+what, err)
	}
	if len(res.Kvs) == 0 {
		return 0, false, nil
	}
	kv := res.Kvs[0]
	if raw, ok := into.(*[]byte); ok {
		*raw = kv.Value
		return kv.ModRevision, true, nil
	}
	if err := json.Unmarshal(kv.Value, into); err != nil {
		return 0, false, api.Wrap(api.CodeInternal, err, "the "+what+"'s record is damaged")
	}
	return kv.ModRevision, true, nil
}

func absent(key string) clientv3.Cmp  { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }
func present(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), ">", 0) }

func put(key string, v any, opts ...clientv3.OpOption) clientv3.Op {
	b, err := json.Marshal(v)
	if err != nil { // strings, numbers and maps of them always encode
		panic(fmt.Sprintf("queue: encode %s: %v", key, err))
	}
	return clientv3.OpPut(key, string(b), opts...)
}

// failure gives etcd's errors a code: all of them may pass.
func failure(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("queue: %s: %w", what, err)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Wrap(api.CodeUnavailable, fmt.Errorf("%s: %w", what, err), "the store did not answer in time")
	}
	return api.Wrap(api.CodeUnavailable, fmt.Errorf("%s: %w", what, err), "the store failed")
}

func notFound(id string) error {
	e := api.Errorf(api.CodeNotFound, "no asynchronous call %q is known", id)
	e.Field, e.Remedy = "id", "results are forgotten after a while; faasd-sec async list shows what is there"
	return e
}
