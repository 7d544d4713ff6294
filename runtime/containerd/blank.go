package containerd

import (
	"context"
	"fmt"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// CanBind implements runtime.Runtime.
func (r *Runtime) CanBind(runtime.Image) error {
	return fmt.Errorf("%w: binding", runtime.ErrUnsupported)
}

// CreateBlank implements runtime.Runtime.
func (r *Runtime) CreateBlank(context.Context, runtime.BlankSpec) (runtime.Sandbox, error) {
	return nil, fmt.Errorf("%w: binding", runtime.ErrUnsupported)
}

// Bind implements runtime.Sandbox.
func (s *Sandbox) Bind(context.Context, runtime.Spec) error {
	return fmt.Errorf("%w: binding", runtime.ErrUnsupported)
}

// Freeze implements runtime.Sandbox.
func (s *Sandbox) Freeze(ctx context.Context) error { return s.goneOr(s.group.Freeze(ctx)) }

// Thaw implements runtime.Sandbox.
func (s *Sandbox) Thaw(ctx context.Context) error { return s.goneOr(s.group.Thaw(ctx)) }
