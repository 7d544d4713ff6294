package cgroups

import (
	"context"
	"fmt"
	"time"
)

// Freeze stops every process of the group and returns when they stand still;
// Thaw lets them go on. On v1 the group needs the freezer controller.
func (g Group) Freeze(ctx context.Context) error { return g.setFrozen(ctx, true) }

// Thaw undoes Freeze.
func (g Group) Thaw(ctx context.Context) error { return g.setFrozen(ctx, false) }

func (g Group) setFrozen(ctx context.Context, frozen bool) error {
	file, value := "freezer.state", "THAWED"
	if frozen {
		value = "FROZEN"
	}
	if g.fs.mode == V2 {
		file, value = "cgroup.freeze", "0"
		if frozen {
			value = "1"
		}
	}
	if err := g.write(Freezer, file, value); err != nil {
		return fmt.Errorf("freeze %s: %w", g.path, err)
	}
	for {
		now, err := g.Frozen()
		if err != nil {
			return err
		}
		if now == frozen {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("freeze %s: %w", g.path, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// Frozen reports whether every process of the group stands still.
func (g Group) Frozen() (bool, error) {
	if g.fs.mode == V2 {
		n, err := g.field(Freezer, "cgroup.events", "frozen")
		if err != nil {
			return false, fmt.Errorf("read freezer: %w", err)
		}
		return n == 1, nil
	}
	s, err := g.read(Freezer, "freezer.state")
	if err != nil {
		return false, fmt.Errorf("read freezer: %w", err)
	}
	switch s {
	case "FROZEN":
		return true, nil
	case "THAWED", "FREEZING":
		return false, nil
	}
	return false, fmt.Errorf("%s: unknown state %q", g.file(Freezer, "freezer.state"), s)
}
