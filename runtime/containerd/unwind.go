package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// unwinder collects what to undo if a start fails half-way.
type unwinder struct {
	timeout time.Duration
	steps   []undoStep
}

type undoStep struct {
	name string
	do   func(context.Context) error
}

func (u *unwinder) add(name string, do func(context.Context) error) {
	u.steps = append(u.steps, undoStep{name, do})
}

// run undoes the steps, last first, and joins what goes wrong to cause. The
// caller's context may be over, which is often why we are here, so life, that
// of the runtime, bounds it together with a time limit.
func (u *unwinder) run(life context.Context, cause error) error {
	ctx, cancel := cleanupContext(life, u.timeout)
	defer cancel()
	errs := []error{cause}
	for _, s := range slices.Backward(u.steps) {
		if err := s.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

// cleanupContext is for work that must be done even when the runtime is being
// closed: it keeps life's values, not its end.
func cleanupContext(life context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(life), timeout)
}
