package node

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

func TestEachSandboxAsksForTheKeysOfOneFunctionOnce(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]string{} // statement -> function
	w := newWorld(t, pooled(2, 4), func(w *world) {
		w.release = func(r api.ReleaseRequest) error {
			mu.Lock()
			defer mu.Unlock()
			if other, ok := asked[string(r.Statement)]; ok {
				t.Errorf("%s asks with the statement of %s", r.Function, other)
			}
			asked[string(r.Statement)] = r.Function
			return nil
		}
	})
	w.filled(2)
	w.fake.Fail(runtimetest.OpBind, errors.New("no such mount"))
	for i := range 6 {
		f := w.known(fmt.Sprintf("f%d", i))
		if status, _, body := w.invoke(f); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
		w.do("DELETE", api.NodePathFunctions+f.name, nil)
	}
}

func TestBusyBrokerIsAskedAgainAndARefusalIsFinal(t *testing.T) {
	var calls int
	var mu sync.Mutex
	answer := []error{api.Errorf(api.CodeBusy, "later"), api.Errorf(api.CodeUnavailable, "away"), nil,
		api.Errorf(api.CodeKeyRefused, "not for you"), nil}
	w := newWorld(t, pooled(1, 2), func(w *world) {
		w.release = func(api.ReleaseRequest) error { mu.Lock(); defer mu.Unlock(); calls++; return answer[calls-1] }
	})
	w.filled(1)
	if status, _, body := w.invoke(w.known("f")); status != 200 || calls != 3 {
		t.Errorf("%d %s after %d requests", status, body, calls)
	}
	if status, h, body := w.invoke(w.known("g")); h.Get(api.HeaderRefused) != string(api.CodeKeyRefused) || calls != 4 {
		t.Errorf("%d %s after %d requests", status, body, calls)
	}
}

func TestEvidenceOfThoseThatWaitIsRenewed(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var last string
	w := newWorld(t, pooled(1, 1), func(w *world) {
		w.release = func(r api.ReleaseRequest) error { mu.Lock(); defer mu.Unlock(); last = string(r.Statement); return nil }
	})
	age := func(by time.Duration) (first []byte) {
		w.n.mu.Lock()
		b := w.n.pool.idle[0]
		w.n.mu.Unlock()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.proof = &proof{statement: b.proof.statement, evidence: b.proof.evidence, at: b.proof.at.Add(-by)}
		return b.proof.statement
	}
	w.filled(1)
	old := age(proofRenew)
	w.eventually("the pool renews it", func() bool {
		w.n.mu.Lock()
		b := w.n.pool.idle[0]
		w.n.mu.Unlock()
		b.mu.Lock()
		defer b.mu.Unlock()
		return string(b.proof.statement) != string(old) && time.Since(b.proof.at) < time.Minute
	})
	// A start that comes before the pool got to it does not use the old one.
	old = age(proofAge)
	if status, _, body := w.invoke(w.known("f")); status != 200 || last == string(old) {
		t.Errorf("%d %s, keys asked with %q", status, body, last)
	}
}

// What a start will show the broker is shown before, and a broker that does not
// care for it, or not answer, delays nobody.
func TestEvidenceOfThoseThatWaitIsShownToTheBroker(t *testing.T) {
	t.Parallel()
	never := make(chan struct{})
	for what, answer := range map[string]func() error{
		"taken":   func() error { return nil },
		"refused": func() error { return api.Errorf(api.CodeKeyRefused, "no") },
		"away":    func() error { return api.Errorf(api.CodeUnavailable, "away") },
		"silent":  func() error { <-never; return nil },
	} {
		var mu sync.Mutex
		shown := map[string]bool{}
		first := make(chan struct{}, 16)
		w := newWorld(t, pooled(1, 1), func(w *world) {
			w.attest = func(r api.AttestRequest) error {
				mu.Lock()
				shown[string(r.Statement)] = true
				mu.Unlock()
				first <- struct{}{}
				return answer()
			}
			w.release = func(r api.ReleaseRequest) error {
				mu.Lock()
				defer mu.Unlock()
				if !shown[string(r.Statement)] {
					return api.Errorf(api.CodeKeyRefused, "not shown before")
				}
				return nil
			}
		})
		w.filled(1)
		select {
		case <-first:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing was shown", what)
		}
		if status, _, body := w.invoke(w.known("f")); status != 200 {
			t.Errorf("%s: %d %s", what, status, body)
		}
		if what == "silent" {
			close(never)
		}
	}
}

func TestAStartWithoutThePoolShowsNothingBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pooled(0, 0))
	if status, _, body := w.invoke(w.known("f")); status != 200 || w.attested.Load() != 0 {
		t.Errorf("%d %s, evidence was shown %d times", status, body, w.attested.Load())
	}
}
