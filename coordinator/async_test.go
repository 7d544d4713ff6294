package coordinator

import (
	"bytes"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/blob"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// openAsync opens a store and what asynchronous calls take, in dir.
func openAsync(t testing.TB, dir, id string) *Async {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(t.Context(), store.DefaultConfig(filepath.Join(dir, "etcd"), log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return asyncOn(t, s, dir, id)
}

func asyncOn(t testing.TB, s *store.Store, dir, id string, change ...func(*queue.Config)) *Async {
	t.Helper()
	etcd, prefix := s.Etcd()
	cfg := queue.DefaultConfig(id, prefix, slog.New(slog.DiscardHandler))
	for _, f := range change {
		f(&cfg)
	}
	q, err := queue.Open(t.Context(), etcd, cfg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := blob.Open(filepath.Join(dir, "blobs"), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	r := DefaultRetry()
	r.MinWaitMs, r.MaxWaitMs = 10, 50
	return &Async{Queue: q, Blobs: b, Retry: r}
}

// asyncWorld is a world whose function takes queued messages.
func asyncWorld(t testing.TB, n int, change ...func(*world)) *world {
	t.Helper()
	a := openAsync(t, t.TempDir(), "co-1")
	return newWorld(t, n, append([]func(*world){func(w *world) {
		w.async = a
		w.deploy(2, func(d *sealed.Descriptor) { d.MaxQueuedMS = uint64(time.Hour.Milliseconds()) })
	}}, change...)...)
}

// later sends msg asynchronously.
func (w *world) later(msg []byte, header ...string) answer {
	w.t.Helper()
	return w.do("POST", "/async-function/f.ns", api.ContentTypeSealed, msg, header...)
}

// result waits until a call has ended.
func (w *world) result(id string) (a answer) {
	w.t.Helper()
	w.eventually("call "+id+" ends", func() bool {
		a = w.do("GET", "/v1/results/"+id, "", nil)
		return a.status != 202
	})
	return a
}

func TestAcceptedCallRunsAndItsResultIsThereAsItCame(t *testing.T) {
	w := asyncWorld(t, 2)
	for _, size := range []int{0, 100, 63 << 10, 100 << 10, 300 << 10, 8 << 20} {
		msg := w.message(size, time.Minute)
		a := w.later(msg, api.HeaderCallID, "call-"+strconv.Itoa(size))
		if a.err != nil || a.status != 202 || len(a.body) != 0 || a.header.Get(api.HeaderStartTime) == "" || a.header.Get(api.HeaderCallID) != "call-"+strconv.Itoa(size) {
			t.Fatalf("%d bytes: %d %s %v %v", size, a.status, a.body, a.header, a.err)
		}
		r := w.result(a.header.Get(api.HeaderCallID))
		if r.status != 200 || r.err != nil || !bytes.Equal(r.body, msg) || r.header.Get("Content-Type") != api.ContentTypeSealed ||
			r.header.Get(api.HeaderFunctionName) != "f.ns" || r.header.Get(api.HeaderAttempts) != "1" || r.header.Get(api.HeaderServedBy) == "" {
			t.Fatalf("%d bytes: %d, %d bytes back, %v, %v", size, r.status, len(r.body), r.header, r.err)
		}
	}
	w.rest()
	w.eventually("bodies that no record names are gone, those of results stay", func() bool {
		if _, err := w.async.Blobs.Collect(t.Context(), 0, w.async.Queue.BlobUsed); err != nil {
			t.Fatal(err)
		}
		n, _, err := w.async.Blobs.(*blob.Dir).Usage()
		return err == nil && n == 3
	})
}

// Where there are several coordinators large bodies are in the store itself.
func TestLargeBodiesInPieces(t *testing.T) {
	var etcd *clientv3.Client
	w := onEtcd(t, 1, func(c *clientv3.Client) { etcd = c }, func(w *world) { w.async.Blobs = w.async.Queue.NewChunks(t.Context(), 4<<20, 64<<20) })
	w.eventually("it is registered", w.async.Queue.Registered)
	for _, size := range []int{100 << 10, 300 << 10, 256<<10 - 500, 512<<10 - 500, 3 << 20} {
		msg := w.message(size, time.Minute)
		a := w.later(msg)
		if a.status != 202 {
			t.Fatalf("%d bytes: %d %s %v", size, a.status, a.body, a.err)
		}
		r := w.result(a.header.Get(api.HeaderCallID))
		if r.status != 200 || !bytes.Equal(r.body, msg) {
			t.Errorf("%d bytes: %d, %d bytes back", size, r.status, len(r.body))
		}
	}
	if a := w.later(w.message(5<<20, time.Minute)); a.code != api.CodeTooLarge {
		t.Errorf("%d %s %v", a.status, a.body, a.err)
	}
	// Five requests that are over and the half of one too large go; five results stay.
	w.eventually("what is not used goes", func() bool {
		if _, err := w.async.Blobs.Collect(t.Context(), 0, nil); err != nil {
			t.Fatal(err)
		}
		pieces, err := etcd.Get(t.Context(), "/faasd-sec/async/chunk/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			t.Fatal(err)
		}
		bodies := map[string]bool{}
		for _, kv := range pieces.Kvs {
			upload, _, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), "/faasd-sec/async/chunk/"), "/")
			bodies[upload] = true
		}
		return len(bodies) == 5
	})
}

func TestCallThatCannotBeMadeLaterIsRefusedAtOnce(t *testing.T) {
	w := asyncWorld(t, 1)
	for _, test := range []struct {
		name, path string
		header     []string
		code       api.Code
	}{
		{"callback", "/async-function/f.ns", []string{api.HeaderCallback, "not a url"}, api.CodeInvalid},
		{"callback's scheme", "/async-function/f.ns", []string{api.HeaderCallback, "ftp://host/"}, api.CodeInvalid},
		{"events", "/async-function/f.ns", []string{api.HeaderEvents, "yes"}, api.CodeInvalid},
		{"once", "/async-function/f.ns", []string{api.HeaderOnce, "yes"}, api.CodeInvalid},
		{"path", "/async-function/f.ns/x", nil, api.CodeInvalid},
		{"name", "/async-function/none.ns", nil, api.CodeNotFound},
		{"manifest", "/async-function/f.ns", []string{api.HeaderManifest, "x"}, api.CodeUnavailable},
	} {
		if a := w.do("POST", test.path, api.ContentTypeSealed, w.message(10, time.Minute), test.header...); a.code != test.code {
			t.Errorf("%s: %d %s", test.name, a.status, a.body)
		}
	}
	if a := w.do("POST", "/async-function/f.ns", "text/plain", []byte("x")); a.code != api.CodeMediaType {
		t.Errorf("plain: %d %s", a.status, a.body)
	}
	if a := w.do("GET", "/v1/results/none", "", nil); a.code != api.CodeNotFound {
		t.Errorf("no call: %d %s", a.status, a.body)
	}
	if n := w.offered(); n != 0 {
		t.Errorf("a node was offered %d", n)
	}
}

func TestFailedAttemptsAreRepeatedAndThenGivenUp(t *testing.T) {
	w := asyncWorld(t, 1)
	var n atomic.Int64
	node := w.nodes["node-1"]
	good := *node.invoke.Load()
	node.on(&node.invoke, func(rw http.ResponseWriter, r *http.Request) {
		if n.Add(1) < 3 {
			breaks(rw, r)
		}
		good(rw, r)
	})
	a := w.later(w.message(10, time.Minute))
	if r := w.result(a.header.Get(api.HeaderCallID)); r.status != 200 || r.header.Get(api.HeaderAttempts) != "3" {
		t.Errorf("%d %s %v", r.status, r.body, r.header)
	}
	node.on(&node.invoke, breaks)
	a = w.later(w.message(10, time.Minute))
	id := a.header.Get(api.HeaderCallID)
	if r := w.result(id); r.code != api.CodeNodeLost || r.header.Get("X-Faasd-Sec-Call-State") != api.AsyncDead || !strings.Contains(string(r.body), "5 attempts") {
		t.Errorf("%d %s", r.status, r.body)
	}
	node.on(&node.invoke, good)
	if err := w.async.Queue.Replay(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if r := w.result(id); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestCallThatFindsNoRoomWaitsWithoutUsingUpItsAttempts(t *testing.T) {
	w := asyncWorld(t, 1, func(w *world) { w.cfg.QueueTimeout = 20 * time.Millisecond })
	node := w.nodes["node-1"]
	good := *node.invoke.Load()
	node.on(&node.invoke, refuses(api.CodeNoRoom))
	a := w.later(w.message(10, time.Minute))
	w.eventually("it was offered again and again", func() bool { return node.offered.Load() > 2 })
	node.on(&node.invoke, good)
	if r := w.result(a.header.Get(api.HeaderCallID)); r.status != 200 || r.header.Get(api.HeaderAttempts) != "1" {
		t.Errorf("%d %s %v", r.status, r.body, r.header)
	}
}

func TestOneFunctionsFloodDoesNotPassItsBound(t *testing.T) {
	w := asyncWorld(t, 1)
	var now, most atomic.Int64
	node := w.nodes["node-1"]
	good := *node.invoke.Load()
	node.on(&node.invoke, func(rw http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(time.Millisecond)
		defer now.Add(-1)
		good(rw, r)
	})
	msg := make([][]byte, 400)
	for i := range msg {
		msg[i] = w.message(10, time.Minute)
	}
	ids := make([]string, len(msg))
	var wg sync.WaitGroup
	for i := range msg {
		wg.Go(func() { ids[i] = w.later(msg[i]).header.Get(api.HeaderCallID) })
	}
	wg.Wait()
	for _, id := range ids {
		if r := w.result(id); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	if m := most.Load(); m > 64 {
		t.Errorf("%d at once", m)
	}
	if n := node.offered.Load(); n != 400 {
		t.Errorf("offered %d times", n)
	}
}

func TestResultThatIsReadOnceIsGoneThen(t *testing.T) {
	w := asyncWorld(t, 1)
	a := w.later(w.message(10, time.Minute), api.HeaderOnce, "1")
	id := a.header.Get(api.HeaderCallID)
	w.eventually("it is done", func() bool {
		s, err := w.async.Queue.State(t.Context(), id)
		return err == nil && s.Result != nil
	})
	if r := w.do("GET", "/v1/results/"+id, "", nil); r.code != api.CodeUnauthorized {
		t.Errorf("without a signature: %d %s", r.status, r.body)
	}
	if r := w.signed(w.owner, "GET", "/v1/results/"+id, nil); r.status != 200 {
		t.Errorf("signed by its sender: %d %s", r.status, r.body)
	}
	if r := w.signed(w.owner, "GET", "/v1/results/"+id, nil); r.code != api.CodeNotFound {
		t.Errorf("a second time: %d %s", r.status, r.body)
	}
}

func TestIdempotencyKeyIsOneCall(t *testing.T) {
	w := asyncWorld(t, 1)
	msg := w.message(10, time.Minute)
	first := w.later(msg, api.HeaderIdempotency, "k")
	for range 3 {
		a := w.later(msg, api.HeaderIdempotency, "k")
		if a.status != 202 || a.header.Get(api.HeaderCallID) != first.header.Get(api.HeaderCallID) {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if a := w.later(w.message(10, time.Minute), api.HeaderIdempotency, "k"); a.status != 409 {
		t.Errorf("another body: %d %s", a.status, a.body)
	}
	w.result(first.header.Get(api.HeaderCallID))
	if a := w.later(msg, api.HeaderIdempotency, "k"); a.status != 202 || a.header.Get(api.HeaderCallID) != first.header.Get(api.HeaderCallID) {
		t.Errorf("after its end: %d %s", a.status, a.body)
	}
	if n := w.offered(); n != 1 {
		t.Errorf("offered %d times", n)
	}
}
