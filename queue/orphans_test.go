package queue

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/faasd-sec/faasd-sec/api"
)

// deaf is a store whose transactions take place while none is told of their outcome,
// or that refuses them all.
type deaf struct {
	clientv3.KV
	lost, refused atomic.Bool
}

func deafen(etcd *clientv3.Client) *deaf {
	d := &deaf{KV: etcd.KV}
	etcd.KV = d
	return d
}

func (d *deaf) Txn(ctx context.Context) clientv3.Txn { return &deafTxn{d.KV.Txn(ctx), d} }

type deafTxn struct {
	clientv3.Txn
	d *deaf
}

func (t *deafTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.Txn = t.Txn.If(c...); return t }
func (t *deafTxn) Then(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(o...); return t }
func (t *deafTxn) Else(o ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(o...); return t }
func (t *deafTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.d.refused.Load() {
		return nil, status.Error(codes.Unavailable, "refused")
	}
	res, err := t.Txn.Commit()
	if t.d.lost.Load() {
		return nil, status.Error(codes.Unavailable, "the answer is lost")
	}
	return res, err
}

// next waits for a turn.
func (m *member) next(t testing.TB) *Turn {
	t.Helper()
	var turn *Turn
	eventually(t, "a call is there", func() bool { turn, _ = m.Next(); return turn != nil })
	return turn
}

// A claim that took place without the coordinator being told is undone: nobody
// attempts the call under it.
func TestClaimOfUnknownOutcomeLosesNoCall(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	d := deafen(etcd)
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1"))
	turn := m.next(t)
	d.lost.Store(true)
	if l, err := turn.Claim(t.Context()); err == nil {
		t.Fatal(l)
	}
	d.lost.Store(false)
	if l := m.claim(t); l.Call.ID != "1" || l.Call.Attempts != 2 {
		t.Fatalf("%+v", l.Call)
	}
}

// The same of a callback.
func TestCallbackClaimOfUnknownOutcomeLosesNoCallback(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	d := deafen(etcd)
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1", func(c *Call) { c.Deliver.Callback = "http://x/" }))
	if err := m.claim(t).Finish(t.Context(), Result{Status: 200}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the callback is known", func() bool { return m.Stats().Deliveries == 1 })
	d.lost.Store(true)
	if o, _, err := m.NextOwed(t.Context()); o != nil || err == nil {
		t.Fatal(o, err)
	}
	d.lost.Store(false)
	var o *Owed
	eventually(t, "the callback is owed again", func() (ok bool) {
		var err error
		if o, _, err = m.NextOwed(t.Context()); err != nil {
			t.Fatal(err)
		}
		return o != nil
	})
	if err := o.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A call whose result the store did not take is attempted again, though the
// coordinator and its lease live on.
func TestCallWhoseOutcomeIsNotStoredIsAttemptedAgain(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	d := deafen(etcd)
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1"))
	l := m.claim(t)
	_, end := l.Context(t.Context())
	d.refused.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := l.Finish(ctx, Result{Status: 200}, nil); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatal(err)
	}
	d.refused.Store(false)
	end()
	if l := m.claim(t); l.Call.ID != "1" || l.Call.Attempts != 2 {
		t.Fatalf("%+v", l.Call)
	}
}

// What is under way keeps its lease, however long it takes.
func TestAttemptsAndCallbacksUnderWayKeepTheirLeases(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1", func(c *Call) { c.Deliver.Callback = "http://x/" }))
	if err := m.claim(t).Finish(t.Context(), Result{Status: 200}, nil); err != nil {
		t.Fatal(err)
	}
	var o *Owed
	eventually(t, "the callback is owed", func() bool { o, _, _ = m.NextOwed(t.Context()); return o != nil })
	m.accept(t, call("2"))
	l := m.claim(t)
	ctx, end := l.Context(t.Context())
	defer end()
	looked := map[string]bool{}
	for until := time.Now().Add(3 * orphanEvery); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		for name := range m.orphans() {
			looked[name] = true
		}
	}
	if len(looked) > 0 || ctx.Err() != nil {
		t.Fatal(looked, ctx.Err())
	}
	if err := errors.Join(o.Done(t.Context()), l.Finish(t.Context(), Result{Status: 200}, nil)); err != nil {
		t.Fatal(err)
	}
}

// Callers choose ids; one that looks like the name of a lease of callbacks is like
// all others.
func TestIDsThatBeginLikeLeasesOfCallbacks(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("d-1"))
	if err := m.claim(t).Again(t.Context(), time.Now(), Failure{Code: api.CodeNodeLost}); err != nil {
		t.Fatal(err)
	}
	if l := m.claim(t); l.Call.ID != "d-1" || l.Call.Attempts != 2 {
		t.Fatalf("%+v", l.Call)
	}
}

// A callback that tells of a dead letter, and ends after that was replayed, takes
// nothing from the callback that tells of the result.
func TestCallbackOfADeadLetterTakesNotThatOfItsReplay(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1", func(c *Call) { c.Deliver.Callback = "http://x/" }))
	if err := m.claim(t).Bury(t.Context(), Failure{Code: api.CodeNodeLost}); err != nil {
		t.Fatal(err)
	}
	owed := func(dead bool) (o *Owed) {
		eventually(t, "a callback is owed", func() bool {
			o, _, _ = m.NextOwed(t.Context())
			return o != nil && o.Dead == dead
		})
		return o
	}
	old := owed(true)
	if err := m.Replay(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	if err := m.claim(t).Finish(t.Context(), Result{Status: 200}, nil); err != nil {
		t.Fatal(err)
	}
	if err := old.Done(t.Context()); !errors.Is(err, ErrFenced) {
		t.Errorf("the callback of the dead letter: %v", err)
	}
	if err := owed(false).Done(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A damaged record keeps no other from being forgotten.
func TestWhatIsOverIsForgottenBesideWhatIsDamaged(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a", func(c *Config) { c.Keep = time.Second })
	for key, value := range map[string]string{m.key(keyResult, "bad"): "{", m.untilKey(1, "result", "bad"): ""} {
		if _, err := etcd.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	m.accept(t, call("good"))
	if err := m.claim(t).Finish(t.Context(), Result{Status: 200}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other is forgotten", func() bool {
		_, err := m.State(t.Context(), "good")
		return api.CodeOf(err) == api.CodeNotFound
	})
}
