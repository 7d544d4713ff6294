package coordinator

import (
	"context"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
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
