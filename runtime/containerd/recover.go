package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// sweepRounds and sweepPause bound the sweeping: a call of containerd that a
// killed daemon had under way may still make something after the first look.
const (
	sweepRounds = 20
	sweepPause  = 100 * time.Millisecond
)

// Recover implements runtime.Runtime. It is to be called once, before the
// first Create.
func (r *Runtime) Recover(ctx context.Context) ([]runtime.Sandbox, error) {
	found, err := r.adoptRunning(ctx)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		// Perhaps the machine went down since: what it had not written to the disk is
		// not in the layers, which nobody uses now and which are soon made again.
		skeletons := filepath.Join(r.cfg.LayerDir, "skeletons")
		if err := errors.Join(removeDir(skeletons), os.MkdirAll(skeletons, 0o711)); err != nil {
			return nil, fmt.Errorf("make layers anew: %w", err)
		}
		r.skels.known.Clear()
		r.roots.known.Clear()
	}
	// Two looks in a row must find nothing.
	for round, clean := 0, 0; clean < 2; round++ {
		n, err := r.sweep(ctx)
		if err != nil && (round >= sweepRounds || ctx.Err() != nil) {
			return found, fmt.Errorf("remove the remains of dead sandboxes: %w", err)
		}
		if n == 0 && err == nil {
			clean++
			if round == 0 {
				break // nothing was ever left
			}
			if clean == 2 {
				break
			}
		} else {
			clean = 0
		}
		select {
		case <-ctx.Done():
			return found, fmt.Errorf("remove the remains of dead sandboxes: %w", ctx.Err())
		case <-time.After(sweepPause):
		}
	}
	return found, nil
}

// adoptRunning gives every container of ours whose task runs back.
func (r *Runtime) adoptRunning(ctx context.Context) ([]runtime.Sandbox, error) {
	list, err := r.containers(ctx)
	if err != nil {
		return nil, err
	}
	states, err := r.taskStates(ctx)
	if err != nil {
		return nil, err
	}
	var found []runtime.Sandbox
	for _, c := range list {
		task, ok := states[c.ID]
		// A blank has nothing that anybody would miss, and the handles that Bind
		// needs were taken before anything foreign could run in it: they cannot be
		// taken again. It falls to the sweep.
		if !ok || task.Status != tasktypes.Status_RUNNING {
			continue
		}
		var image string // of one that was bound, and of which containerd has not heard
		if c.Labels[labelBlank] != "" {
			rec := r.recordOf(c.ID)
			if rec.Labels == nil {
				continue
			}
			c.Labels, image = rec.Labels, rec.Image
		}
		s, err := r.readopt(ctx, c, int(task.Pid))
		if err == nil && image != "" {
			err = r.settleLate(ctx, s, image)
		}
		if err != nil {
			r.cfg.Log.Warn("a sandbox of an earlier life cannot be adopted and is removed", "sandbox", c.ID, "error", err)
			continue // and falls to the sweep
		}
		found = append(found, s)
	}
	return found, nil
}

// settleLate is settle for a sandbox whose daemon was killed before. Its image is
// held by nothing but the view that came with it: if that is gone, so is the
// sandbox.
func (r *Runtime) settleLate(ctx context.Context, s *Sandbox, image string) error {
	err := r.createLease(ctx, s.info.ID, image)
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	if err == nil {
		err = r.relabel(ctx, s)
	}
	if err != nil {
		return errors.Join(err, s.Remove(ctx, 0))
	}
	return nil
}

// readopt makes the Sandbox of a running task anew. Its limits are verified
// again: nobody watched them meanwhile.
func (r *Runtime) readopt(ctx context.Context, c containers.Container, pid int) (_ *Sandbox, retErr error) {
	s, err := r.sandboxOf(c.Labels)
	if err != nil {
		return nil, err
	}
	if s.info.ID != c.ID {
		return nil, fmt.Errorf("container %s says it is sandbox %s", c.ID, s.info.ID)
	}
	s.info.PID = pid
	if s.proc, err = openProcess(pid); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, s.proc.close())
		}
	}()
	// Only if the task runs still is the process that was opened its own.
	task, err := r.taskState(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	if task.Status != tasktypes.Status_RUNNING || int(task.Pid) != pid {
		return nil, runtime.ErrGone
	}
	if err := errors.Join(s.group.Verify(s.outerLimits()), s.functionGroup().Verify(s.functionLimits())); err != nil {
		return nil, fmt.Errorf("%w: %w", runtime.ErrLimits, err)
	}
	// Nobody else would: who froze it knew that it was frozen.
	if err := s.group.Thaw(ctx); err != nil {
		return nil, err
	}
	if err := r.ranges.take(s.base); err != nil {
		return nil, err
	}
	if err := r.reserve(c.ID); err != nil {
		r.ranges.giveBack(s.base)
		return nil, err
	}
	r.adopt(s)
	return s, nil
}

// sweep removes what belongs to no sandbox of this runtime and says how many
// sandboxes it found remains of.
func (r *Runtime) sweep(ctx context.Context) (int, error) {
	remains, err := r.remains(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	for id, dir := range remains {
		errs = append(errs, r.sweepOne(ctx, id, dir))
	}
	errs = append(errs, r.sweepProbes())
	return len(remains), errors.Join(errs...)
}

// remains maps the id of each dead sandbox to its socket directory, "" where
// that is not known. It looks in every place that can hold a part of one.
func (r *Runtime) remains(ctx context.Context) (map[string]string, error) {
	out := make(map[string]string)
	note := func(id, dir string) {
		r.mu.Lock()
		_, ours := r.sandboxes[id]
		r.mu.Unlock()
		if !ours && (dir != "" || out[id] == "") {
			out[id] = dir
		}
	}
	list, err := r.containers(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		note(c.ID, c.Labels[labelSocketDir])
	}
	states, err := r.taskStates(ctx)
	if err != nil {
		return nil, err
	}
	for id := range states {
		note(id, "")
	}
	shims, err := r.shims()
	if err != nil {
		return nil, err
	}
	for id := range shims {
		note(id, "")
	}
	cctx, cancel := r.call(ctx)
	defer cancel()
	ls, err := r.client.LeasesService().List(cctx, "labels."+quoteFilter(labelSandbox))
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	for _, l := range ls {
		note(l.Labels[labelSandbox], "")
	}
	groups, err := r.cgroups.Group(filepath.Dir(r.cgroupPath("x"))).Children()
	if err != nil {
		return nil, err
	}
	for _, id := range groups {
		note(id, "")
	}
	entries, err := os.ReadDir(filepath.Join(r.cfg.RunDir, "sandboxes"))
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	for _, e := range entries {
		note(e.Name(), r.recordOf(e.Name()).SocketDir)
	}
	return out, nil
}

// recordOf is readRecord for one that may be damaged: then it says as much as none.
// The sandbox is removed, by what else there is of it; to fail would keep all others
// from their node, start after start.
func (r *Runtime) recordOf(id string) record {
	rec, err := r.readRecord(id)
	if err != nil {
		r.cfg.Log.Warn("a sandbox of an earlier life is removed without its record", "sandbox", id, "error", err)
		return record{ID: id}
	}
	return rec
}

// sweepOne removes the remains of one sandbox, whatever of it there is.
func (r *Runtime) sweepOne(ctx context.Context, id, socketDir string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("%q in the namespace %s is not a sandbox of ours: give the node a namespace of its own", id, r.cfg.Namespace)
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.UnwindTimeout)
	defer cancel()
	s := &Sandbox{r: r, info: runtime.Info{ID: id, SocketDir: socketDir}, group: r.cgroups.Group(r.cgroupPath(id))}
	// A frozen one does not die on cgroup v1, whatever the shim does.
	if err := s.group.Thaw(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
		r.cfg.Log.Warn("thaw a sandbox to remove it", "sandbox", id, "error", err)
	}
	if err := r.killTask(ctx, id); err != nil {
		return fmt.Errorf("sweep sandbox %s: %w", id, err)
	}
	if err := s.dismantle(ctx); err != nil {
		return fmt.Errorf("sweep sandbox %s: %w", id, err)
	}
	// The task is gone, and its shim with it, unless containerd lost that.
	if err := r.killShims(id); err != nil {
		return fmt.Errorf("sweep sandbox %s: %w", id, err)
	}
	if err := s.erase(ctx); err != nil {
		return fmt.Errorf("sweep sandbox %s: %w", id, err)
	}
	r.cfg.Log.Info("removed the remains of a sandbox", "sandbox", id)
	return nil
}

// killTask ends a task that nobody owns. containerd finds a task by its
// container: where a create that was under way has left one without, the
// container is made again for as long as it takes to delete the task.
func (r *Runtime) killTask(ctx context.Context, id string) error {
	states, err := r.taskStates(ctx)
	if err != nil {
		return err
	}
	task, ok := states[id]
	if !ok {
		return nil
	}
	empty, err := typeurl.MarshalAny(&specs.Spec{})
	if err != nil {
		return fmt.Errorf("name the task: %w", err)
	}
	cctx, cancel := r.call(ctx)
	defer cancel()
	_, err = r.client.ContainerService().Create(cctx, containers.Container{
		ID: id, Labels: map[string]string{labelSandbox: id}, Spec: empty, Runtime: containers.RuntimeInfo{Name: r.cfg.Shim},
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("name the task: %w", err)
	}
	if task.Status == tasktypes.Status_STOPPED {
		return nil
	}
	_, err = r.client.TaskService().Kill(cctx, &tasks.KillRequest{ContainerID: id, Signal: 9, All: true})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill task: %w", err)
	}
	if _, _, err := r.exitOf(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// sweepProbes removes what a probe or a skeleton left that was killed half-way.
func (r *Runtime) sweepProbes() error {
	var left []string
	for _, pattern := range []string{filepath.Join(r.cfg.LayerDir, "probe-*"), filepath.Join(r.cfg.LayerDir, "skeletons/new-*"), filepath.Join(r.cfg.RunDir, "skeletons/new-*")} {
		m, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("look for probes: %w", err)
		}
		left = append(left, m...)
	}
	var errs []error
	for _, dir := range left {
		err := unmountAll(dir)
		if err == nil {
			err = removeDir(dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// containers lists the containers of the namespace that are sandboxes.
func (r *Runtime) containers(ctx context.Context) ([]containers.Container, error) {
	ctx, cancel := r.call(ctx)
	defer cancel()
	list, err := r.client.ContainerService().List(ctx, "labels."+quoteFilter(labelSandbox))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	slices.SortFunc(list, func(a, b containers.Container) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list, nil
}

// taskStates lists all tasks of the namespace by id.
func (r *Runtime) taskStates(ctx context.Context) (map[string]*tasktypes.Process, error) {
	ctx, cancel := r.call(ctx)
	defer cancel()
	resp, err := r.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
	}
	out := make(map[string]*tasktypes.Process, len(resp.Tasks))
	for _, t := range resp.Tasks {
		out[t.ID] = t
	}
	return out, nil
}

func (r *Runtime) taskState(ctx context.Context, id string) (*tasktypes.Process, error) {
	ctx, cancel := r.call(ctx)
	defer cancel()
	resp, err := r.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return nil, fmt.Errorf("look task up: %w", errgrpc.ToNative(err))
	}
	return resp.Process, nil
}
