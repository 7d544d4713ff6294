package runtimetest

import (
	"context"
	"errors"
	"fmt"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// RefuseBind makes CanBind say why an image cannot be bound; an empty why lets
// it be bound again.
func (f *Fake) RefuseBind(digest, why string) {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	if why == "" {
		delete(f.machine.unfit, digest)
		return
	}
	f.machine.unfit[digest] = why
}

// CanBind implements runtime.Runtime: all images can be, but those of RefuseBind.
func (f *Fake) CanBind(img runtime.Image) error {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	if why, ok := f.machine.unfit[img.Digest]; ok {
		return fmt.Errorf("%w: %s", runtime.ErrUnsupported, why)
	}
	return nil
}

// CreateBlank implements runtime.Runtime.
func (f *Fake) CreateBlank(ctx context.Context, spec runtime.BlankSpec) (runtime.Sandbox, error) {
	if err := checkFakePlace(spec.ID, spec.AgentPath, spec.SocketDir); err != nil {
		return nil, err
	}
	if err := errors.Join(ctx.Err(), f.machine.fault(OpBlank)); err != nil {
		return nil, fmt.Errorf("create blank %s: %w", spec.ID, err)
	}
	return f.add(ctx, Task{Blank: true, Spec: runtime.Spec{
		ID: spec.ID, AgentPath: spec.AgentPath, AgentEnv: spec.AgentEnv, SocketDir: spec.SocketDir,
	}}, runtime.Info{ID: spec.ID, SocketDir: spec.SocketDir, Start: api.StartPooled, Blank: true})
}

// Bind implements runtime.Sandbox.
func (s *fakeSandbox) Bind(ctx context.Context, spec runtime.Spec) error {
	if err := errors.Join(s.alive(), ctx.Err(), s.m.fault(OpBind)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := checkFakeSpec(spec); err != nil {
		return err
	}
	s.m.mu.Lock()
	_, ok := s.m.images[spec.Image.Digest]
	s.m.mu.Unlock()
	if !ok {
		return fmt.Errorf("bind: no image %s", spec.Image.Digest)
	}
	spec = withIDs(spec)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.bound || !s.info.Blank:
		return api.Errorf(api.CodeConflict, "sandbox %s has a function already", s.info.ID)
	case len(s.admitted) == 0:
		return api.Errorf(api.CodeConflict, "sandbox %s: its launcher was not admitted", s.info.ID)
	case spec.ID != "" && spec.ID != s.info.ID:
		return api.Invalid("id", "leave it empty", "it is not that of the blank")
	}
	s.bound = true
	s.info.Blank, s.info.Function, s.info.Revision = false, spec.Function, spec.Revision
	s.info.Resources, s.info.UID, s.info.GID = spec.Resources, spec.UID, spec.GID
	s.info.Reserved = spec.Reserved
	return nil
}

// Freeze implements runtime.Sandbox. The agent is a goroutine and goes on; what
// it may do meanwhile is for the test to check with Frozen.
func (s *fakeSandbox) Freeze(context.Context) error { return s.setFrozen(OpFreeze, true) }

// Thaw implements runtime.Sandbox.
func (s *fakeSandbox) Thaw(context.Context) error { return s.setFrozen(OpThaw, false) }

func (s *fakeSandbox) setFrozen(op Op, frozen bool) error {
	if err := errors.Join(s.alive(), s.m.fault(op)); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = frozen
	return nil
}

// Frozen says whether a sandbox exists and is frozen.
func (f *Fake) Frozen(id string) bool {
	s := f.machine.find(id)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frozen
}

// Bound lists the ids of blanks that Bind gave a function, sorted as Sandboxes.
func (f *Fake) Bound() []string {
	var out []string
	for _, id := range f.Sandboxes() {
		if s := f.machine.find(id); s != nil && s.Info().Start == api.StartPooled && !s.Info().Blank {
			out = append(out, id)
		}
	}
	return out
}
