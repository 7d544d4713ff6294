package containerd

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/cgroups"
)

// A daemon that was killed leaves sandboxes as they stand. One that the next cannot
// adopt is removed all the same.
func TestAFrozenSandboxThatCannotBeAdoptedIsRemoved(t *testing.T) {
	eachShim(t, aFrozenSandboxThatCannotBeAdoptedIsRemoved)
}

func aFrozenSandboxThatCannotBeAdoptedIsRemoved(t *testing.T, b *bench) {
	cfg := b.config(t)
	r := b.openWith(t, cfg)
	spec := b.spec(t, r, b.basic(t, r))
	made, _ := b.start(t, r, spec)
	s := made.(*Sandbox)
	if err := s.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	more := *s.outerLimits().PIDs + 1 // its limits are not what they were
	if err := s.group.Apply(cgroups.Limits{PIDs: &more}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.group.Thaw(context.Background()) }() // or a failure would leave it for ever
	r = b.openWith(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	found, err := r.Recover(ctx)
	if err != nil || len(found) != 0 {
		t.Fatalf("recovered %v, %v", found, err)
	}
	for _, left := range []string{spec.SocketDir, r.dir(s.ID())} {
		if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
	if s.group.Exists() {
		t.Errorf("cgroup %s is left", s.group.Path())
	}
}
