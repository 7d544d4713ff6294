package coordinator

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// shared are the claims of two coordinators.
type shared struct {
	taken map[string]bool
	err   error
}

func (s *shared) ClaimTask(_ context.Context, id string, _ time.Time) error {
	if s.err == nil && s.taken[id] {
		return api.Errorf(api.CodeDuplicateTask, "taken")
	}
	if s.err == nil {
		s.taken[id] = true
	}
	return s.err
}

func (s *shared) ReleaseTask(_ context.Context, id string) error { delete(s.taken, id); return nil }

func TestATaskIsAcceptedByOneOfTwoCoordinators(t *testing.T) {
	claims := &shared{taken: map[string]bool{}}
	one, two := &Coordinator{life: t.Context(), tasks: newFence()}, &Coordinator{life: t.Context(), tasks: newFence()}
	one.dep.Claims, two.dep.Claims = claims, claims
	x := &task{id: sealed.ID{1}}
	if err := one.fence(x, "owner", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := two.fence(x, "owner", time.Now()); api.CodeOf(err) != api.CodeDuplicateTask {
		t.Fatalf("the second coordinator: %v", err)
	}
	one.unfence(x) // nothing of it ran
	if err := one.fence(x, "owner", time.Now()); err != nil {
		t.Fatalf("again: %v", err)
	}
	// Without the store nobody knows; what was refused may come again.
	claims.err = api.Errorf(api.CodeUnavailable, "no majority")
	y := &task{id: sealed.ID{2}}
	if err := two.fence(y, "owner", time.Now()); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("without the store: %v", err)
	}
	claims.err = nil
	if err := two.fence(y, "owner", time.Now()); err != nil {
		t.Fatal(err)
	}
}

func TestFenceIsBoundedAndExpires(t *testing.T) {
	f, now := newFence(), time.Now()
	id := func(i int) sealed.ID { return sealed.ID{byte(i), byte(i >> 8), byte(i >> 16), 1} }
	if err := f.begin(id(0), "o", now.Add(time.Second), now); err != nil {
		t.Fatal(err)
	}
	// Its manifest may still open: it is remembered beyond its deadline.
	if err := f.begin(id(0), "o", time.Time{}, now.Add(shortestFence-time.Second)); api.CodeOf(err) != api.CodeDuplicateTask {
		t.Error(err)
	}
	if err := f.begin(id(0), "o", time.Time{}, now.Add(shortestFence)); err != nil {
		t.Error(err)
	}
	f.release(id(0))
	if err := f.begin(id(0), "o", now.Add(time.Hour), now); err != nil {
		t.Error(err)
	}
	if err := f.begin(id(0), "o", time.Time{}, now.Add(50*time.Minute)); api.CodeOf(err) != api.CodeDuplicateTask {
		t.Error(err)
	}
	for i := 1; i < maxTasksEach; i++ {
		if err := f.begin(id(i), "o", time.Time{}, now); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := f.begin(id(maxTasks), "o", time.Time{}, now); api.CodeOf(err) != api.CodeBusy {
		t.Error(err)
	}
	if err := f.begin(id(maxTasks), "p", time.Time{}, now); err != nil {
		t.Errorf("another owner: %v", err)
	}
	if err := f.begin(id(maxTasks+1), "o", time.Time{}, now.Add(shortestFence)); err != nil || len(f.tasks) != 2 {
		t.Errorf("when they expired: %v, %d are left", err, len(f.tasks))
	}
	if f.expire(now.Add(2 * time.Hour)); f.size() != 0 || len(f.count) != 0 {
		t.Errorf("nothing came, and %d of %d owners are left", f.size(), len(f.count))
	}
}

// A task that its agent did not take, as one whose places are all taken, may come
// again: the agent says that it did not open it, and the node passes that on.
func TestTaskThatWasNotOpenedMayComeAgain(t *testing.T) {
	var asked *counted
	w := newWorld(t, 1, withOpener(t, &asked))
	w.bounded(someBounds())
	n := w.nodes["node-1"]
	header, _ := w.wish(w.owner, func(m *manifest.Manifest) { m.Priority = 1 })
	for _, last := range []bool{false, true} {
		n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if !last {
				rw.Header().Set(api.HeaderUnopened, "1")
			}
			rw.Header().Set("Content-Type", api.ContentTypeProblem)
			rw.WriteHeader(http.StatusServiceUnavailable)
		})
		if a := w.task(header); a.status != http.StatusServiceUnavailable || a.code == api.CodeDuplicateTask || a.header.Get(api.HeaderUnopened) != "" {
			t.Fatalf("%d %s %v", a.status, a.body, a.header)
		}
	}
	if a := w.task(header); a.code != api.CodeDuplicateTask {
		t.Errorf("one that may have been opened: %d %s", a.status, a.body)
	}
}
