package containerd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Purge removes everything this runtime ever made, sandboxes, images, the
// namespace, cgroups, RunDir and LayerDir, and closes it. It is for taking a cluster
// down, and tests.
func (r *Runtime) Purge(ctx context.Context) error {
	r.mu.Lock()
	live := make([]*Sandbox, 0, len(r.sandboxes))
	for _, s := range r.sandboxes {
		if s != nil {
			live = append(live, s)
		}
	}
	r.mu.Unlock()
	var errs []error
	for _, s := range live {
		errs = append(errs, s.Remove(ctx, 0))
	}
	if _, err := r.sweep(ctx); err != nil {
		errs = append(errs, err)
	}
	digests, err := r.Images(ctx)
	errs = append(errs, err)
	for _, d := range digests {
		errs = append(errs, r.Forget(ctx, d))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("purge: %w", errors.Join(err, r.Close()))
	}
	errs = append(errs,
		r.collect(ctx),
		r.client.NamespaceService().Delete(ctx, r.cfg.Namespace),
		r.cgroups.Group(filepath.Dir(r.cgroupPath("x"))).Remove(ctx),
		r.Close(),
		removeDir(r.cfg.RunDir),
		removeDir(r.cfg.LayerDir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("purge: %w", err)
	}
	return nil
}

// collect has containerd collect its garbage now: a namespace can be deleted
// only when it is empty. A lease that is deleted synchronously does that.
func (r *Runtime) collect(ctx context.Context) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	l, err := r.client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	if err := r.client.LeasesService().Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}
