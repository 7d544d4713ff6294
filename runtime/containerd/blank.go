package containerd

import (
	"context"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// blankResources are what a sandbox without a function has beside the agent's
// share: enough for the launcher to start and wait.
func blankResources() api.Resources {
	return api.Resources{CPU: 1000, Memory: 32 << 20, PIDs: 16}
}

// CanBind implements runtime.Runtime.
func (r *Runtime) CanBind(runtime.Image) error { return r.noBind }

// CreateBlank implements runtime.Runtime.
func (r *Runtime) CreateBlank(ctx context.Context, b runtime.BlankSpec) (runtime.Sandbox, error) {
	if r.noBind != nil {
		return nil, r.noBind
	}
	return r.create(ctx, runtime.Spec{
		ID: b.ID, AgentPath: b.AgentPath, AgentEnv: b.AgentEnv, SocketDir: b.SocketDir, Resources: blankResources(), AllowInet: true,
	}, true)
}

// buildBlank is build for a sandbox without a function. Its root is shared by
// all of them: it has the mount points and nothing else.
func (s *Sandbox) buildBlank(ctx context.Context, spec runtime.Spec) error {
	r := s.r
	if err := r.writeRecord(s.record()); err != nil {
		return err
	}
	root, err := r.roots.get(blankDirs())
	if err != nil {
		return err
	}
	return r.createContainer(ctx, s, r.blankSpec(spec, root, s.group.Path(), s.base, s.outerLimits()))
}

// blankDirs are the mount points of a blank's root.
func blankDirs() []string {
	return []string{"dev", strings.TrimPrefix(api.FunctionRoot, "/"), "proc", strings.TrimPrefix(api.AgentRunDir, "/")}
}

// Freeze implements runtime.Sandbox.
func (s *Sandbox) Freeze(ctx context.Context) error {
	if err := s.frost().Freeze(ctx); err != nil {
		return s.goneOr(err)
	}
	return nil
}

// Thaw implements runtime.Sandbox.
func (s *Sandbox) Thaw(ctx context.Context) error {
	if err := s.frost().Thaw(ctx); err != nil {
		return s.goneOr(err)
	}
	return nil
}

// keepFreezer opens the freezer for as long as the sandbox lives: a call may
// wait for a thaw.
func (s *Sandbox) keepFreezer() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freezer != nil {
		return nil
	}
	g, err := s.group.Keep(cgroups.Freezer)
	if err == nil {
		s.freezer = &g
	}
	return err
}

// frost is the group to freeze.
func (s *Sandbox) frost() cgroups.Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freezer != nil {
		return *s.freezer
	}
	return s.group
}
