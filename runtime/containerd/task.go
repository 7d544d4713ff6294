package containerd

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The calls of containerd, each with its deadline. They go to its services
// directly: the client's own wrappers read the container back several times
// per start and lease what needs no lease.

func (r *Runtime) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.cfg.CallTimeout)
}

func leaseID(id string) string { return "faasd-sec-" + id }

// createLease holds the view that the sandbox's root is made of.
func (r *Runtime) createLease(ctx context.Context, id, dgst string) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	lm := r.client.LeasesService()
	l, err := lm.Create(ctx, leases.WithID(leaseID(id)), leases.WithLabel(labelSandbox, id))
	if err != nil {
		return fmt.Errorf("lease the image: %w", err)
	}
	view := leases.Resource{ID: viewKey(dgst), Type: "snapshots/" + r.cfg.Snapshotter}
	if err := lm.AddResource(ctx, l, view); err != nil {
		return fmt.Errorf("lease the image: %w", err)
	}
	// The garbage collector takes no notice of a lease on what is gone already.
	if _, err := r.client.SnapshotService(r.cfg.Snapshotter).Stat(ctx, view.ID); err != nil {
		return fmt.Errorf("lease the image: %w", err)
	}
	return nil
}

func (r *Runtime) deleteLease(ctx context.Context, id string) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	err := r.client.LeasesService().Delete(ctx, leases.Lease{ID: leaseID(id)})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease: %w", err)
	}
	return nil
}

func (r *Runtime) createContainer(ctx context.Context, s *Sandbox, spec *specs.Spec) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	any, err := typeurl.MarshalAny(spec)
	if err != nil {
		return fmt.Errorf("encode the OCI spec: %w", err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: r.cfg.Runc})
	if err != nil {
		return fmt.Errorf("encode the runtime options: %w", err)
	}
	_, err = r.client.ContainerService().Create(ctx, containers.Container{
		ID: s.info.ID, Labels: s.labels(), Spec: any,
		Runtime: containers.RuntimeInfo{Name: r.cfg.Shim, Options: opts},
	})
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	return nil
}

// relabel gives the container the labels of what its sandbox has become.
func (r *Runtime) relabel(ctx context.Context, s *Sandbox) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	_, err := r.client.ContainerService().Update(ctx, containers.Container{ID: s.info.ID, Labels: s.labels()}, "labels")
	if err != nil {
		return fmt.Errorf("label the container: %w", err)
	}
	return nil
}

func (r *Runtime) deleteContainer(ctx context.Context, id string) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	if err := r.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container: %w", err)
	}
	return nil
}

// createTask starts the shim and has runc set the sandbox up; its init process
// waits to be started. Standard streams are null: what a function prints goes
// to its owner, sealed, through the agent.
//
// The call does not end with the caller's context: containerd 1.6 loses a shim
// that it was starting then.
func (r *Runtime) createTask(ctx context.Context, id string) (pid int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("create task: %w", err)
	}
	ctx, cancel := r.call(context.WithoutCancel(ctx))
	defer cancel()
	resp, err := r.client.TaskService().Create(ctx, &tasks.CreateTaskRequest{ContainerID: id})
	if err != nil {
		return 0, fmt.Errorf("create task: %w", errgrpc.ToNative(err))
	}
	return int(resp.Pid), nil
}

func (r *Runtime) startTask(ctx context.Context, id string) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	if _, err := r.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: id}); err != nil {
		return fmt.Errorf("start task: %w", errgrpc.ToNative(err))
	}
	return nil
}

// exitOf waits for the task's end and says how it ended.
func (r *Runtime) exitOf(ctx context.Context, id string) (uint32, time.Time, error) {
	ctx, cancel := r.call(ctx)
	defer cancel()
	resp, err := r.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: id})
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("wait for task: %w", errgrpc.ToNative(err))
	}
	return resp.ExitStatus, resp.ExitedAt.AsTime(), nil
}

// deleteTask deletes a task whose process has ended, and with it the shim.
func (r *Runtime) deleteTask(ctx context.Context, id string) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	_, err := r.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete task: %w", err)
	}
	return nil
}
