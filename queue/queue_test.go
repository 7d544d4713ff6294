package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// etcdOf is a real etcd that ends with the test.
func etcdOf(t testing.TB, dir string) (*clientv3.Client, string) {
	t.Helper()
	s, err := store.Open(t.Context(), store.DefaultConfig(dir, slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.Etcd()
}

// member is a queue that runs, and what ends it as a kill would: without a word.
type member struct {
	*Queue
	kill func()
}

func open(t testing.TB, etcd *clientv3.Client, prefix, id string, change ...func(*Config)) *member {
	t.Helper()
	cfg := DefaultConfig(id, prefix, slog.New(slog.DiscardHandler))
	for _, f := range change {
		f(&cfg)
	}
	q, err := Open(t.Context(), etcd, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); _ = q.Run(ctx) }()
	m := &member{q, sync.OnceFunc(func() { cancel(); <-done })}
	t.Cleanup(m.kill)
	eventually(t, id+" is registered", q.Registered)
	return m
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func call(id string, change ...func(*Call)) Call {
	c := Call{ID: id, Function: "f.ns", Owner: "owner", Sender: "sender", Expires: time.Now().Add(time.Hour).UnixMilli(),
		Retry: Retry{Attempts: 3, MinWaitMs: 1, MaxWaitMs: 10}}
	for _, f := range change {
		f(&c)
	}
	return c
}

func (m *member) accept(t testing.TB, c Call) {
	t.Helper()
	if _, _, err := m.Accept(t.Context(), c, []byte("body of "+c.ID), Key{}); err != nil {
		t.Fatal(err)
	}
}

// claim waits for the next call and takes its lease.
func (m *member) claim(t testing.TB) *Lease {
	t.Helper()
	var l *Lease
	eventually(t, "a call is there", func() bool {
		turn, _ := m.Next()
		if turn == nil {
			return false
		}
		var err error
		if l, err = turn.Claim(t.Context()); err != nil && !errors.Is(err, ErrFenced) {
			t.Fatal(err)
		}
		return err == nil
	})
	return l
}

func TestCallEndsInOneResult(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1"))
	l := m.claim(t)
	if b, err := m.Body(t.Context(), "1"); err != nil || string(b) != "body of 1" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := l.Finish(t.Context(), Result{Status: 200}, []byte("result")); err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(t.Context(), Result{Status: 500}, []byte("another")); err != nil {
		t.Fatal("a repetition after an unknown outcome:", err)
	}
	if err := l.Bury(t.Context(), Failure{}); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	s, err := m.State(t.Context(), "1")
	if err != nil || s.Result == nil || s.Result.Status != 200 || s.Result.Attempts != 1 || s.Result.Sender != "sender" {
		t.Fatalf("%+v, %v", s, err)
	}
	if b, err := m.Reply(t.Context(), "1"); err != nil || string(b) != "result" {
		t.Fatalf("%q, %v", b, err)
	}
	if _, _, err := m.Accept(t.Context(), call("1"), nil, Key{}); api.CodeOf(err) != api.CodeConflict {
		t.Fatal("an id that is taken:", err)
	}
	left, err := etcd.Get(t.Context(), prefix+"async/w/call/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || left.Count != 0 {
		t.Fatal(left, err)
	}
}

// An attempt of a call that is cancelled, through whichever coordinator, is told so,
// also where that comes before the attempt has begun to listen.
func TestAttemptOfACancelledCallEnds(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	a, b := open(t, etcd, prefix, "a"), open(t, etcd, prefix, "b")
	for i, listensFirst := range []bool{true, false} {
		id := strconv.Itoa(i)
		a.accept(t, call(id))
		l := a.claim(t)
		if !listensFirst {
			eventually(t, "it is known there", func() bool { return b.Cancel(t.Context(), id) == nil })
		}
		ctx, done := l.Context(t.Context())
		if listensFirst {
			if ctx.Err() != nil {
				t.Fatal("the attempt ended by itself")
			}
			eventually(t, "it is known there", func() bool { return b.Cancel(t.Context(), id) == nil })
		}
		eventually(t, "the attempt is told", func() bool { return ctx.Err() != nil })
		done()
	}
	a.accept(t, call("kept"))
	l := a.claim(t)
	ctx, done := l.Context(t.Context())
	if err := l.Finish(t.Context(), Result{Status: 200}, nil); err != nil || t.Context().Err() != nil {
		t.Fatal(err)
	}
	done()
	if len(a.running) != 0 || ctx.Err() == nil {
		t.Errorf("%d attempts are under way", len(a.running))
	}
}

// Who lost the lease writes nothing, whatever it thinks.
func TestLostLeaseWritesNothing(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	a := open(t, etcd, prefix, "a")
	a.accept(t, call("1"))
	old := a.claim(t)
	b := open(t, etcd, prefix, "b")
	// The lease ends while its holder goes on, as behind a partition.
	if _, err := etcd.Revoke(t.Context(), a.lease); err != nil {
		t.Fatal(err)
	}
	a.kill()
	fresh := b.claim(t)
	if fresh.Fence <= old.Fence {
		t.Fatalf("fence %d after %d", fresh.Fence, old.Fence)
	}
	for what, err := range map[string]error{
		"finish": old.Finish(t.Context(), Result{Status: 200}, []byte("late")),
		"again":  old.Again(t.Context(), time.Now(), Failure{}),
		"bury":   old.Bury(t.Context(), Failure{}),
	} {
		if !errors.Is(err, ErrFenced) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := fresh.Finish(t.Context(), Result{Status: 200}, []byte("good")); err != nil {
		t.Fatal(err)
	}
	if err := old.Finish(t.Context(), Result{Status: 200}, []byte("late")); !errors.Is(err, ErrFenced) {
		t.Error(err)
	}
	if r, err := b.Reply(t.Context(), "1"); err != nil || string(r) != "good" {
		t.Errorf("%q, %v", r, err)
	}
	if s, err := b.State(t.Context(), "1"); err != nil || s.Result.Attempts != 2 {
		t.Errorf("%+v, %v", s.Result, err)
	}
}

func TestPriorityThenArrivalAndOwnersInTurn(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a", func(c *Config) { c.PerFunction = 1000 })
	for i := range 20 {
		m.accept(t, call(fmt.Sprintf("flood-%02d", i)))
	}
	m.accept(t, call("urgent", func(c *Call) { c.Priority = 5 }))
	m.accept(t, call("other", func(c *Call) { c.Function, c.Owner = "g.ns", "somebody" }))
	eventually(t, "all are seen", func() bool { return m.Stats().Waiting == 22 })
	var order []string
	for range 5 {
		order = append(order, m.claim(t).Call.ID)
	}
	if got := fmt.Sprint(order); got != "[urgent other flood-00 flood-01 flood-02]" {
		t.Error(got)
	}
}

func TestBoundsOnWhatWaitsAndRuns(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a", func(c *Config) { c.PerFunction, c.MaxWaiting, c.MaxWaitingEach = 2, 6, 4 })
	for i := range 4 {
		m.accept(t, call(fmt.Sprint(i)))
	}
	eventually(t, "all are seen", func() bool { return m.Stats().Waiting == 4 })
	if _, _, err := m.Accept(t.Context(), call("5"), nil, Key{}); api.CodeOf(err) != api.CodeBusy {
		t.Error("an owner's share:", err)
	}
	m.accept(t, call("6", func(c *Call) { c.Owner, c.Function = "b", "g.ns" }))
	first := m.claim(t)
	m.claim(t)
	m.claim(t) // of the other function
	if turn, _ := m.Next(); turn != nil {
		t.Errorf("%s runs beyond the bound", turn.call.ID)
	}
	if err := first.Finish(t.Context(), Result{}, nil); err != nil {
		t.Fatal(err)
	}
	m.claim(t)
}

func TestFailedCallIsRepeatedLaterThenReplayedFromTheDead(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1"))
	l := m.claim(t)
	at := time.Now().Add(300 * time.Millisecond).Truncate(time.Millisecond) // as it is stored
	if err := l.Again(t.Context(), at, Failure{Code: api.CodeNodeLost}); err != nil {
		t.Fatal(err)
	}
	l = m.claim(t)
	if time.Now().Before(at) || l.Call.Attempts != 2 {
		t.Errorf("attempt %d before its time", l.Call.Attempts)
	}
	if err := l.Bury(t.Context(), Failure{Code: api.CodeNodeLost, Message: "gone"}); err != nil {
		t.Fatal(err)
	}
	dead, err := m.DeadLetters(t.Context(), Filter{})
	if err != nil || len(dead) != 1 || dead[0].Attempts != 2 || dead[0].Failure.Code != api.CodeNodeLost {
		t.Fatalf("%+v, %v", dead, err)
	}
	if n, err := m.CountDead(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := m.Replay(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	l = m.claim(t)
	if b, err := m.Body(t.Context(), "1"); err != nil || string(b) != "body of 1" || l.Call.Attempts != 1 {
		t.Fatalf("%q, %v, attempt %d", b, err, l.Call.Attempts)
	}
	if err := l.Bury(t.Context(), Failure{}); err != nil {
		t.Fatal(err)
	}
	if err := m.Purge(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	all, err := etcd.Get(t.Context(), prefix+"async/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range all.Kvs {
		if k := string(kv.Key); k != prefix+"async/w/member/a" {
			t.Errorf("left behind: %s", k)
		}
	}
}

func TestExpiredCallIsBuriedUnattempted(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1", func(c *Call) { c.Expires = time.Now().Add(-time.Second).UnixMilli() }))
	eventually(t, "it is buried", func() bool {
		if _, err := m.BuryExpired(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := m.State(t.Context(), "1")
		return err == nil && s.Dead != nil && s.Dead.Failure.Code == api.CodeDeadline
	})
	if err := m.Replay(t.Context(), "1"); api.CodeOf(err) != api.CodeDeadline {
		t.Error(err)
	}
}

func TestCancelledCallHasThatAsItsResult(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	m.accept(t, call("1"))
	l := m.claim(t)
	if err := m.Cancel(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(t.Context(), Result{Status: 200}, nil); !errors.Is(err, ErrFenced) {
		t.Error(err)
	}
	if s, err := m.State(t.Context(), "1"); err != nil || s.Result == nil || s.Result.Failed.Code != api.CodeCancelled {
		t.Errorf("%+v, %v", s, err)
	}
	if err := m.Cancel(t.Context(), "1"); api.CodeOf(err) != api.CodeNotFound {
		t.Error(err)
	}
}

func TestWhatIsOverIsForgotten(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	var ahead atomic.Int64
	m := open(t, etcd, prefix, "a", func(c *Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	if _, _, err := m.Accept(t.Context(), call("1", func(c *Call) { c.Expires = 0 }), []byte("b"), Key{Key: "k", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	if err := m.claim(t).Finish(t.Context(), Result{Body: Body{Blob: "aa"}}, nil); err != nil {
		t.Fatal(err)
	}
	if used, err := m.BlobUsed(t.Context(), "aa"); err != nil || !used {
		t.Fatal(used, err)
	}
	ahead.Store(int64(m.cfg.Keep + time.Minute))
	eventually(t, "nothing is left of it", func() bool {
		all, err := etcd.Get(t.Context(), prefix+"async/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		return err == nil && all.Count == 1 // the member
	})
}

// Three queues on one etcd share the work, and each call has one result.
func TestThreeCoordinatorsNeverStoreTwoResults(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	members := []*member{open(t, etcd, prefix, "a"), open(t, etcd, prefix, "b"), open(t, etcd, prefix, "c")}
	const calls = 300
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() { members[i%3].accept(t, call(fmt.Sprintf("%03d", i))) })
	}
	wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stored, fenced atomic.Int64
	for i, m := range members {
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					turn, _ := m.Next()
					if turn == nil {
						time.Sleep(time.Millisecond)
						continue
					}
					l, err := turn.Claim(ctx)
					if err != nil {
						continue
					}
					if i == 0 && stored.Load() > 50 { // this one dies with what it has
						go m.kill()
						return
					}
					switch err := l.Finish(ctx, Result{Status: 200}, []byte(m.cfg.ID)); {
					case err == nil:
						stored.Add(1)
					case errors.Is(err, ErrFenced):
						fenced.Add(1)
					}
				}
			})
		}
	}
	eventually(t, "all calls have ended", func() bool { return members[1].Stats() == Stats{} })
	cancel()
	wg.Wait()
	res, err := etcd.Get(t.Context(), prefix+"async/result/", clientv3.WithPrefix())
	if err != nil || res.Count != calls || stored.Load() != calls {
		t.Errorf("%d results, %d stored, %d fenced, %v", res.Count, stored.Load(), fenced.Load(), err)
	}
	for _, kv := range res.Kvs {
		if kv.Version != 1 {
			t.Errorf("%s was written %d times", kv.Key, kv.Version)
		}
	}
}

func BenchmarkAccept(b *testing.B) {
	etcd, prefix := etcdOf(b, b.TempDir())
	m := open(b, etcd, prefix, "a", func(c *Config) { c.MaxWaiting = 10_000_000 })
	var n atomic.Int64
	body := make([]byte, 1024)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := m.Accept(b.Context(), call(fmt.Sprint(n.Add(1))), body, Key{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
