package coordinator

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

var sizes = []int{100, 300 << 10} // buffered; offered first, then streamed

func TestInvocationReachesOneNodeUnchanged(t *testing.T) {
	w := newWorld(t, 3)
	for _, size := range []int{0, 100, 64 << 10, 300 << 10, 4 << 20} {
		before := w.offered()
		msg := w.message(size, time.Minute)
		a := w.send(msg)
		if a.err != nil || a.status != 200 || !bytes.Equal(a.body, msg) || a.header.Get(api.HeaderServedBy) == "" || a.header.Get(api.HeaderCallID) == "" {
			t.Errorf("%d bytes: %d, %d bytes back, %v", size, a.status, len(a.body), a.err)
		}
		if n := w.offered() - before; n != 1 {
			t.Errorf("%d bytes: offered %d times", size, n)
		}
	}
	w.rest()
}

func TestRefusalGoesOnToTheNextCandidate(t *testing.T) {
	for _, size := range sizes {
		w := newWorld(t, 3)
		for _, id := range []string{"node-1", "node-2"} {
			n := w.nodes[id]
			n.on(&n.invoke, refuses(api.CodeNoRoom))
			n.on(&n.admit, refuses(api.CodeNoRoom))
		}
		for range 5 {
			if a := w.send(w.message(size, time.Minute)); a.status != 200 || a.header.Get(api.HeaderServedBy) != "node-3" {
				t.Errorf("%d bytes: %d %s", size, a.status, a.body)
			}
		}
		w.rest()
	}
}

func TestUnreachableNodeIsPassedOver(t *testing.T) {
	for _, size := range sizes {
		w := newWorld(t, 2)
		w.nodes["node-1"].server.Close()
		for range 5 {
			if a := w.send(w.message(size, time.Minute)); a.status != 200 || a.header.Get(api.HeaderServedBy) != "node-2" {
				t.Errorf("%d bytes: %d %s", size, a.status, a.body)
			}
		}
		w.rest()
	}
}

// What may have reached a function is never sent a second time.
func TestLostNodeIsNeverReplaced(t *testing.T) {
	for _, size := range sizes {
		w := newWorld(t, 3)
		for _, n := range w.nodes {
			n.on(&n.invoke, breaks)
		}
		a := w.send(w.message(size, time.Minute))
		if a.status != 502 || a.code != api.CodeNodeLost || !strings.Contains(string(a.body), "seal the request again") {
			t.Errorf("%d bytes: %d %s %v", size, a.status, a.body, a.err)
		}
		if n := w.offered(); n != 1 {
			t.Errorf("%d bytes: offered %d times", size, n)
		}
		w.rest()
	}
}

func TestSilentNodeIsADeadline(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, 1)
	defer close(release)
	n := w.nodes["node-1"]
	n.on(&n.invoke, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); <-release })
	w.c.cfg.StartTimeout = -5 * time.Second // the function's own bound is 5 s
	w.deploy(2, func(d *sealed.Descriptor) { d.Config.ReadMS, d.Config.WriteMS, d.Config.ExecMS = 1500, 1500, 500 })
	if a := w.send(w.message(10, time.Minute)); a.status != 504 || a.code != api.CodeDeadline {
		t.Errorf("%d %s %v", a.status, a.body, a.err)
	}
	w.rest()
}

func TestNodeIsToldAnUnknownRevisionOnce(t *testing.T) {
	for _, size := range sizes {
		w := newWorld(t, 1)
		n := w.nodes["node-1"]
		var knows atomic.Bool
		invoke, admit := *n.invoke.Load(), *n.admit.Load()
		unless := func(h http.HandlerFunc) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				if knows.Load() {
					h(rw, r)
					return
				}
				refuses(api.CodeUnknownRevision)(rw, r)
			}
		}
		n.on(&n.invoke, unless(invoke))
		n.on(&n.admit, unless(admit))
		n.on(&n.put, func(rw http.ResponseWriter, r *http.Request) {
			var rec api.Revision
			if err := json.NewDecoder(r.Body).Decode(&rec); err != nil || !bytes.Equal(rec.Descriptor, w.fn.Descriptor) || !strings.HasSuffix(r.URL.Path, w.rev.String()) {
				t.Errorf("told %s: %v", r.URL.Path, err)
			}
			knows.Store(true)
			rw.WriteHeader(204)
		})
		for range 3 {
			if a := w.send(w.message(size, time.Minute)); a.status != 200 {
				t.Errorf("%d bytes: %d %s", size, a.status, a.body)
			}
		}
		if n.told.Load() != 1 {
			t.Errorf("%d bytes: told %d times", size, n.told.Load())
		}
	}
}

// waitsLong has calls that wait do so for as long as it takes.
func waitsLong(w *world) { w.cfg.QueueTimeout = time.Hour }

// waited is how many calls found no room at once.
func (w *world) waited() uint64 {
	w.c.queue.mu.Lock()
	defer w.c.queue.mu.Unlock()
	return w.c.queue.arrivals
}

func TestNodeThatNeverLearnsIsNotToldForEver(t *testing.T) {
	w := newWorld(t, 2, waitsLong)
	for _, n := range w.nodes {
		n.on(&n.invoke, refuses(api.CodeUnknownRevision))
	}
	if a := w.send(w.message(10, time.Minute)); a.code != api.CodeUnknownRevision || w.waited() != 0 {
		t.Errorf("%d %s, %d waited", a.status, a.body, w.waited())
	}
	for id, n := range w.nodes {
		if n.told.Load() > 1 {
			t.Errorf("%s was told %d times", id, n.told.Load())
		}
	}
	w.rest()
}

func TestWhatEveryNodeWouldSayEndsAtOnce(t *testing.T) {
	for _, code := range []api.Code{api.CodeKeyRefused, api.CodeFunctionNotReady, api.CodeFunctionCrashed, api.CodeInvalid} {
		w := newWorld(t, 3, waitsLong)
		for _, n := range w.nodes {
			n.on(&n.invoke, refuses(code))
		}
		if a := w.send(w.message(10, time.Minute)); a.code != code || !strings.Contains(string(a.body), "do this") {
			t.Errorf("%s: %d %s", code, a.status, a.body)
		}
		if w.offered() != 1 || w.waited() != 0 {
			t.Errorf("%s: offered %d times, %d waited", code, w.offered(), w.waited())
		}
	}
}

// A start that fails may succeed elsewhere, but is not tried for ever nor waited for.
func TestFailedStartsAreTriedAFewTimesOnly(t *testing.T) {
	for nodes, want := range map[int]int64{1: 1, 2: 2, 5: 3} {
		w := newWorld(t, nodes, waitsLong)
		for _, n := range w.nodes {
			n.on(&n.invoke, refuses(api.CodeStartFailed))
		}
		if a := w.send(w.message(10, time.Minute)); a.code != api.CodeStartFailed {
			t.Errorf("%d nodes: %d %s", nodes, a.status, a.body)
		}
		if w.offered() != want || w.waited() != 0 {
			t.Errorf("%d nodes: offered %d times, %d waited", nodes, w.offered(), w.waited())
		}
		w.rest()
	}
}

func TestQueueIsBoundedAndWakesUp(t *testing.T) {
	w := newWorld(t, 1, waitsLong, func(w *world) { w.cfg.QueueSize = 3 })
	w.mesh.set("node-1", func(v *api.NodeView) { v.Load.Free = api.Resources{} })
	got := make(chan answer, 3)
	for range 3 {
		go func() { got <- w.send(w.message(10, time.Minute)) }()
	}
	w.eventually("three wait", func() bool { return w.c.queue.count.Load() == 3 })
	a := w.send(w.message(10, time.Minute))
	if a.status != 429 || a.code != api.CodeBusy || a.header.Get("Retry-After") == "" {
		t.Errorf("the fourth: %d %s", a.status, a.body)
	}
	w.mesh.set("node-1", func(v *api.NodeView) { v.Load.Free = v.Meta.Capacity })
	for range 3 {
		if a := <-got; a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	w.rest()
}

// A place that an invocation of ours gives up is known at once, without gossip.
func TestEndOfAnInvocationWakesTheNext(t *testing.T) {
	w := newWorld(t, 1, waitsLong)
	n := w.nodes["node-1"]
	var busy atomic.Bool
	release, begun := make(chan struct{}), make(chan struct{}, 2)
	n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
		if !busy.CompareAndSwap(false, true) {
			refuses(api.CodeBusy)(rw, r)
			return
		}
		io.Copy(io.Discard, r.Body)
		begun <- struct{}{}
		<-release
		busy.Store(false)
		rw.WriteHeader(200)
	})
	first := make(chan answer, 2)
	go func() { first <- w.send(w.message(10, time.Minute)) }()
	<-begun
	go func() { first <- w.send(w.message(10, time.Minute)) }()
	w.eventually("the second waits", func() bool { return w.c.queue.count.Load() == 1 })
	close(release)
	for range 2 {
		if a := <-first; a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	w.rest()
}

func TestWaitingEndsWithTheQueueOrTheMessage(t *testing.T) {
	for _, c := range []struct{ queue, life, want time.Duration }{
		{600 * time.Millisecond, time.Minute, 600 * time.Millisecond},
		{time.Hour, 3 * time.Second, 3 * time.Second},
	} {
		w := newWorld(t, 1, func(w *world) { w.cfg.QueueTimeout = c.queue })
		w.mesh.set("node-1", func(v *api.NodeView) { v.Load.Free = api.Resources{} })
		began := time.Now()
		a := w.send(w.message(10, c.life))
		if took := time.Since(began); a.status != 503 || a.code != api.CodeNoRoom || took < c.want-100*time.Millisecond {
			t.Errorf("message of %v in a queue of %v: %d %s after %v", c.life, c.queue, a.status, a.body, took)
		}
		w.rest()
	}
}

func TestMoreThanAnyNodeHasIsSaidAtOnce(t *testing.T) {
	w := newWorld(t, 2, waitsLong)
	w.deploy(2, func(d *sealed.Descriptor) { d.Config.Resources.MemoryBytes = 1 << 40 })
	a := w.send(w.message(10, time.Minute))
	var p api.Problem
	if err := json.Unmarshal(a.body, &p); err != nil || p.Code != api.CodeNoRoom || p.Field != "limits.memory" || w.waited() != 0 {
		t.Errorf("%+v, %d waited", p, w.waited())
	}
}

func TestBadMessagesReachNoNode(t *testing.T) {
	w := newWorld(t, 1)
	good := w.message(100, time.Minute)
	old := w.rev
	w.deploy(2, func(d *sealed.Descriptor) { d.Config.ExecMS = 2000 })
	for what, c := range map[string]struct {
		method, path, contentType string
		body                      []byte
		code                      api.Code
	}{
		"stale revision": {"POST", "/function/f.ns", api.ContentTypeSealed, good, api.CodeStaleRevision},
		"garbage":        {"POST", "/function/f.ns", api.ContentTypeSealed, make([]byte, 1000), "format"},
		"nothing":        {"POST", "/function/f.ns", api.ContentTypeSealed, nil, "truncated"},
		"half a head":    {"POST", "/function/f.ns", api.ContentTypeSealed, good[:300], "truncated"},
		"expired":        {"POST", "/function/f.ns", api.ContentTypeSealed, w.message(10, time.Millisecond), "window"},
		"plain":          {"POST", "/function/f.ns", "text/plain", good, api.CodeMediaType},
		"read":           {"GET", "/function/f.ns", api.ContentTypeSealed, nil, api.CodeMethod},
		"unknown":        {"POST", "/function/g.ns", api.ContentTypeSealed, good, api.CodeNotFound},
		"no name":        {"POST", "/function/F", api.ContentTypeSealed, good, api.CodeInvalid},
	} {
		if what == "expired" {
			time.Sleep(5 * time.Millisecond) // its life
		}
		if a := w.do(c.method, c.path, c.contentType, c.body); a.code != c.code {
			t.Errorf("%s: %d %s %v, want %s", what, a.status, a.body, a.err, c.code)
		}
	}
	if old == w.rev || w.offered() != 0 {
		t.Errorf("offered %d times", w.offered())
	}
	w.rest()
}

func TestBodyLimitHolds(t *testing.T) {
	w := newWorld(t, 1, func(w *world) { w.cfg.MaxBody = 1 << 20 })
	if a := w.send(w.message(1<<20, time.Minute)); a.err == nil && a.code != api.CodeTooLarge {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.send(w.message(1<<19, time.Minute)); a.status != 200 {
		t.Errorf("below it: %d %s", a.status, a.body)
	}
	w.rest()
}

func TestLoadsThatComeWithRepliesAreObserved(t *testing.T) {
	w := newWorld(t, 1)
	n, of := w.nodes["node-1"], "node-1"
	n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
		b, _ := json.Marshal(api.NodeLoad{Node: of, Epoch: 1, Seq: 42})
		rw.Header().Set(api.HeaderLoad, string(b))
		refuses(api.CodeFunctionCrashed)(rw, r)
	})
	w.send(w.message(10, time.Minute))
	if len(w.mesh.observed) != 1 || w.mesh.observed[0].Seq != 42 {
		t.Errorf("observed %+v", w.mesh.observed)
	}
	of = "node-2"
	w.send(w.message(10, time.Minute))
	if len(w.mesh.observed) != 1 {
		t.Errorf("a node told of another: %+v", w.mesh.observed)
	}
}

// Connections to a daemon that was killed must not cost one invocation each.
func TestRestartedNodeIsReachedAnew(t *testing.T) {
	w := newWorld(t, 1)
	var wg sync.WaitGroup
	for range 8 { // some idle connections
		wg.Go(func() { w.send(w.message(10, time.Minute)) })
	}
	wg.Wait()
	n := w.nodes["node-1"]
	n.server.Close()
	w.addNode("node-2")
	w.mesh.mu.Lock()
	moved := w.mesh.view.Nodes[1].Meta.Addr
	w.mesh.mu.Unlock()
	w.mesh.set("node-1", func(v *api.NodeView) { v.Load.Epoch, v.Meta.Addr = 2, moved })
	w.mesh.set("node-2", func(v *api.NodeView) { v.Load.Epoch = 0 })
	for range 8 {
		if a := w.send(w.message(10, time.Minute)); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	w.rest()
}
