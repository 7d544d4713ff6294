package coordinator

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/store"
)

// hung is an opener that hangs.
type hung struct{ asked atomic.Int64 }

func (s *hung) hang(ctx context.Context) error {
	s.asked.Add(1)
	<-ctx.Done()
	return api.Wrap(api.CodeUnavailable, ctx.Err(), "the opener does not answer")
}

func (s *hung) Info(ctx context.Context) ([]ask.Key, error) { return nil, s.hang(ctx) }
func (s *hung) Deposit(ctx context.Context, _ ask.Subject, _ []byte) ([]byte, error) {
	return nil, s.hang(ctx)
}
func (s *hung) Open(ctx context.Context, _ ask.Subject, _, _ []byte) (ask.Opened, error) {
	return ask.Opened{}, s.hang(ctx)
}

// RoundTrip is a key broker's that takes a while to fail.
func (s *hung) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(r.Context(), 300*time.Millisecond)
	defer cancel()
	return nil, s.hang(ctx)
}

// Those that come while the opener or the key broker hangs do not wait for it one
// after the other: whoever looks whether the coordinator is ready would wait for all
// before.
func TestWhileAnotherProcessHangsNobodyWaitsForTheOthers(t *testing.T) {
	opener := &hung{}
	w := newWorld(t, 1, func(w *world) {
		w.manifests, w.broker, w.brokerURL = opener, &http.Client{Transport: opener}, "http://broker"
	})
	r := w.fnRoute()
	const callers = 12
	for what, f := range map[string]func() error{
		"ready":    w.c.Ready,
		"defaults": func() error { _, err := w.c.defaults(r); return err },
		"broker":   func() error { _, err := w.c.brokerSigning(); return err },
	} {
		before := opener.asked.Load()
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				if err := f(); api.CodeOf(err) != api.CodeUnavailable {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		all.Wait()
		if n := opener.asked.Load() - before; n > callers/2 {
			t.Errorf("%s: it was asked %d times for %d that came together", what, n, callers)
		}
	}
}

// A node that hangs keeps nobody who reads logs for ever.
func TestLogsEndWhereANodeHangs(t *testing.T) {
	l := &logged{}
	w := newWorld(t, 2, quietly(l))
	for id, n := range w.nodes {
		n.on(&n.other, func(rw http.ResponseWriter, r *http.Request) {
			if id == "node-1" { // says who it is, and no more
				rw.(http.Flusher).Flush()
				<-r.Context().Done()
			}
		})
	}
	m := newMerger(w.c, "f.ns", "")
	m.silent = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done, _ := m.start(ctx)
	<-done
	if ctx.Err() != nil {
		t.Error("who reads is kept by a node that hangs")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if text := l.b.String(); !strings.Contains(text, "node-1") || !strings.Contains(text, errSilent.Error()) {
		t.Errorf("nothing says that the node hangs: %s", text)
	}
}

// What was not stored is not said to be.
func TestARolloutThatWasNotStoredIsNotTold(t *testing.T) {
	l := &logged{}
	w := newWorld(t, 1, quietly(l))
	rec := *w.state.Get("f.ns")
	rec.Version-- // it was changed since
	rec.Next = rec.Alone()
	rec.Rollout = &api.Rollout{State: api.RolloutRolling}
	w.c.scaler.promote(t.Context(), &rec)
	w.c.scaler.fail(t.Context(), &rec, api.CodeStartFailed, "it ends at once")
	l.mu.Lock()
	defer l.mu.Unlock()
	if text := l.b.String(); strings.Contains(text, "a new revision") {
		t.Errorf("told of what is not so: %s", text)
	}
}

// What is kept of a function goes with it, though nobody calls it any more.
func TestNothingIsKeptOfARemovedFunction(t *testing.T) {
	w := newWorld(t, 1)
	w.fnRoute()
	if _, err := w.state.DeleteFunction(t.Context(), "f.ns", store.Absent); err != nil {
		t.Fatal(err)
	}
	w.c.forgetRemoved()
	if _, ok := w.c.routes.Load(api.FunctionName("f.ns")); ok {
		t.Error("its route is kept")
	}
	if _, ok := w.c.calls.Load(api.FunctionName("f.ns")); ok {
		t.Error("its counter is kept")
	}
}
