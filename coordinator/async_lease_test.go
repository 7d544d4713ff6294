package coordinator

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// onEtcd is asyncWorld over an etcd client that the test has changed.
func onEtcd(t testing.TB, n int, change func(*clientv3.Client), more ...func(*world)) *world {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), store.DefaultConfig(filepath.Join(dir, "etcd"), slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	etcd, _ := s.Etcd()
	change(etcd)
	return newWorld(t, n, append([]func(*world){func(w *world) {
		w.async = asyncOn(t, s, dir, "co-1", func(cfg *queue.Config) { cfg.LeaseTTL = 2 * time.Second })
		w.deploy(2, func(d *sealed.Descriptor) { d.MaxQueuedMS = uint64(time.Hour.Milliseconds()) })
	}}, more...)...)
}

// mute does not tell of the first lease that it is kept alive, though it is.
type mute struct {
	clientv3.Lease
	told atomic.Bool
}

func (m *mute) KeepAlive(ctx context.Context, id clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	alive, err := m.Lease.KeepAlive(ctx, id)
	if err != nil || m.told.Swap(true) {
		return alive, err
	}
	go func() { // ends with ctx
		for range alive {
		}
	}()
	return make(chan *clientv3.LeaseKeepAliveResponse), nil
}

// A call that waits for room while its coordinator cannot be sure of its lease any
// more is given back: it is no dead letter that somebody cancelled.
func TestCallOfALeaseInDoubtGoesOn(t *testing.T) {
	w := onEtcd(t, 0, func(etcd *clientv3.Client) { etcd.Lease = &mute{Lease: etcd.Lease} })
	a := w.later(w.message(10, time.Minute))
	if a.status != 202 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	id := a.header.Get(api.HeaderCallID)
	var s queue.State
	look := func() queue.State {
		var err error
		if s, err = w.async.Queue.State(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return s
	}
	w.eventually("it is attempted", func() bool { return look().Waiting != nil && s.Waiting.Running() })
	w.eventually("the attempt is broken off", func() bool { return look().Waiting == nil || s.Waiting.Last != nil })
	w.eventually("it is attempted again", func() bool { return look().Waiting == nil || s.Waiting.Running() })
	if s.Waiting == nil {
		t.Fatalf("%+v", s.Dead)
	}
}

// unburying holds transactions back that bury a call, until release is closed.
type unburying struct {
	clientv3.KV
	release chan struct{}
	held    atomic.Int32
}

func (s *unburying) Txn(ctx context.Context) clientv3.Txn {
	return &unburyingTxn{Txn: s.KV.Txn(ctx), s: s}
}

type unburyingTxn struct {
	clientv3.Txn
	s *unburying
}

func (t *unburyingTxn) If(c ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(c...); return t }
func (t *unburyingTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	for _, op := range ops {
		if op.IsPut() && strings.Contains(string(op.KeyBytes()), "/dead/") {
			t.s.held.Add(1)
			<-t.s.release
		}
	}
	t.Txn = t.Txn.Then(ops...)
	return t
}

func TestCallsAreAttemptedWhileOthersAreBuried(t *testing.T) {
	s := &unburying{release: make(chan struct{})}
	w := onEtcd(t, 1, func(etcd *clientv3.Client) { s.KV = etcd.KV; etcd.KV = s })
	defer close(s.release)
	if _, _, err := w.async.Queue.Accept(t.Context(), queue.Call{ID: "late", Function: "f.ns", Owner: "o", Expires: 1, NotUntil: time.Now().Add(time.Hour).UnixMilli()}, []byte("x"), queue.Key{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("one is being buried", func() bool { return s.held.Load() > 0 })
	if r := w.result(w.later(w.message(10, time.Minute)).header.Get(api.HeaderCallID)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// collecting looks for bodies that nobody wants while one is read.
type collecting struct{ *queue.Chunks }

func (c collecting) Get(name string) (io.ReadCloser, error) {
	r, err := c.Chunks.Get(name)
	return &collected{r, c.Chunks}, err
}

type collected struct {
	io.ReadCloser
	c *queue.Chunks
}

func (r *collected) Read(p []byte) (int, error) {
	if _, err := r.c.Collect(context.Background(), 0, nil); err != nil {
		return 0, err
	}
	return r.ReadCloser.Read(p)
}

func TestLargeResultThatIsReadOnceIsReadWhole(t *testing.T) {
	w := asyncWorld(t, 1, func(w *world) {
		w.async.Blobs = collecting{w.async.Queue.NewChunks(t.Context(), 4<<20, 64<<20)}
	})
	w.eventually("it is registered", w.async.Queue.Registered)
	msg := w.message(700<<10, time.Minute)
	id := w.later(msg, api.HeaderOnce, "1").header.Get(api.HeaderCallID)
	w.eventually("it is done", func() bool {
		s, err := w.async.Queue.State(t.Context(), id)
		return err == nil && s.Result != nil
	})
	if r := w.signed(w.owner, "GET", "/v1/results/"+id, nil); r.status != 200 || r.err != nil || !bytes.Equal(r.body, msg) {
		t.Errorf("%d, %d bytes, %v", r.status, len(r.body), r.err)
	}
	if r := w.signed(w.owner, "GET", "/v1/results/"+id, nil); r.code != api.CodeNotFound {
		t.Errorf("a second time: %d %s", r.status, r.body)
	}
}

// What comes of a call that was under way when its coordinator was told to stop is
// stored: sealed calls are not opened a second time.
func TestResultThatComesWhileTheCoordinatorStopsIsStored(t *testing.T) {
	w := asyncWorld(t, 1)
	node := w.nodes["node-1"]
	good := *node.invoke.Load()
	under, release := make(chan struct{}), make(chan struct{})
	node.on(&node.invoke, func(rw http.ResponseWriter, r *http.Request) {
		close(under)
		<-release
		good(rw, r)
	})
	id := w.later(w.message(10, time.Minute)).header.Get(api.HeaderCallID)
	select {
	case <-under:
	case <-time.After(30 * time.Second):
		t.Fatal("no attempt")
	}
	closed := make(chan struct{})
	go func() { defer close(closed); w.c.Close() }()
	for until := time.Now().Add(time.Second); time.Now().Before(until) && w.async.Queue.Registered(); {
		time.Sleep(time.Millisecond)
	}
	close(release)
	<-closed
	if s, err := w.async.Queue.State(t.Context(), id); err != nil || s.Result == nil || s.Result.Status != 200 || s.Result.Attempts != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}
