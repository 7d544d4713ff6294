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
	"github.com/faasd-sec/faasd-sec/manifest"
)

// Asynchronous tasks wait as others do: seen, by priority, and cancelled by who
// sent them; what their manifests ask for is in no record.
func TestAsynchronousTasksWaitByPriorityAndAreCancelled(t *testing.T) {
	var asked *counted
	w := asyncWorld(t, 1, withOpener(t, &asked), waitsLong)
	w.attemptsTakeTime()
	b := someBounds()
	b.AnyInitiator = true
	w.bounded(b)
	n := w.nodes["node-1"]
	var open, busy atomic.Bool
	var mu sync.Mutex
	var order []string
	n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
		var needs api.Needs
		if err := json.Unmarshal([]byte(r.Header.Get(api.HeaderNeeds)), &needs); err != nil {
			t.Error(err)
		}
		if !open.Load() || !busy.CompareAndSwap(false, true) {
			refuses(api.CodeNoRoom)(rw, r)
			return
		}
		defer busy.Store(false)
		mu.Lock()
		order = append(order, needs.Task)
		mu.Unlock()
		rw.Header().Set("Content-Type", api.ContentTypeSealed)
		io.Copy(rw, r.Body)
	})
	send := func(priority uint8) string {
		header, task := w.wish(w.owner, func(m *manifest.Manifest) { m.Priority = priority })
		a := w.later(w.message(10, time.Minute), api.HeaderManifest, header)
		if a.status != 202 || a.header.Get(api.HeaderCallID) != task {
			t.Fatalf("%d %s, call %s of task %s", a.status, a.body, a.header.Get(api.HeaderCallID), task)
		}
		if a := w.later(w.message(10, time.Minute), api.HeaderManifest, header); a.code != api.CodeDuplicateTask {
			t.Errorf("the same task again: %d %s", a.status, a.body)
		}
		w.eventually("the task waits", func() bool { return strings.Contains(string(w.do("GET", api.GatewayPathWaiting, "", nil).body), task) })
		return task
	}
	low, high, gone := send(1), send(9), send(5)
	if a := w.do("DELETE", api.GatewayPathWaiting+"/"+gone, "", nil); a.code != api.CodeUnauthorized {
		t.Errorf("nobody cancels: %d %s", a.status, a.body)
	}
	if a := w.signed(w.owner, "DELETE", api.GatewayPathWaiting+"/"+gone, nil); a.status != 204 {
		t.Errorf("its initiator cancels: %d %s", a.status, a.body)
	}
	if r := w.result(gone); r.code != api.CodeCancelled {
		t.Errorf("the cancelled task: %d %s", r.status, r.body)
	}
	var a answer
	w.eventually("the list has the two others, the high one first", func() bool {
		a = w.signed(w.owner, "GET", api.GatewayPathAsyncCalls, nil)
		var calls []api.AsyncCall
		return json.Unmarshal(a.body, &calls) == nil && len(calls) == 2 && calls[0].ID == high && calls[1].ID == low
	})
	if bytes.Contains(a.body, []byte("memory")) {
		t.Errorf("the list tells of needs: %s", a.body)
	}
	// An attempt of the cancelled one may not have ended, and of the others not begun.
	w.eventually("the two others stand in line, and none of them tries", func() bool {
		q := w.c.queue
		q.mu.Lock()
		defer q.mu.Unlock()
		stand := map[string]bool{}
		for t := range q.all {
			stand[t.id] = t.stands != nil
		}
		if len(stand) != 2 || !stand[low] || !stand[high] {
			return false
		}
		open.Store(true)
		return true
	})
	for _, id := range []string{high, low} {
		if r := w.result(id); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(order) != 2 || order[0] != high {
		t.Errorf("served %v, want %s first", order, high)
	}
	w.rest()
	if r := w.fnRoute(); len(r.hosting.at) != 0 {
		t.Errorf("tasks that ended are still thought to be at %v", r.hosting.at)
	}
}

// A task that was accepted for later is that call's, also while it finds no room: sent
// again meanwhile, it would run twice.
func TestATaskThatWaitsForItsNextAttemptIsNotTakenAgain(t *testing.T) {
	var asked *counted
	w := asyncWorld(t, 1, withOpener(t, &asked), func(w *world) { w.cfg.QueueTimeout = 20 * time.Millisecond })
	b := someBounds()
	b.AnyInitiator = true
	w.bounded(b)
	n := w.nodes["node-1"]
	n.on(&n.invoke, refuses(api.CodeNoRoom))
	header, task := w.wish(w.owner, func(*manifest.Manifest) {})
	if a := w.later(w.message(10, time.Minute), api.HeaderManifest, header); a.status != 202 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventually("an attempt found no room", func() bool {
		s, err := w.async.Queue.State(t.Context(), task)
		return err == nil && s.Waiting != nil && s.Waiting.Last != nil
	})
	if a := w.do("POST", "/function/f.ns", api.ContentTypeSealed, w.message(10, time.Minute), api.HeaderManifest, header); a.code != api.CodeDuplicateTask {
		t.Errorf("%d %s", a.status, a.body)
	}
}
