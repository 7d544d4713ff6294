package shim

import (
	"context"
	"errors"
	"fmt"
	"os"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// translate gives errors the codes by which containerd tells them apart.
func translate(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	resp, err := method(ctx, unmarshal)
	return resp, errgrpc.ToGRPC(err)
}

// taskAPI implements containerd's task service.
type taskAPI struct{ s *Service }

var _ taskapi.TTRPCTaskService = taskAPI{}

func unsupported(what string) error {
	return fmt.Errorf("%s: not supported by this shim: %w", what, errdefs.ErrNotImplemented)
}

// noExec refuses requests about processes other than the first.
func noExec(id string) error {
	if id != "" {
		return fmt.Errorf("process %s: this shim runs one process per task: %w", id, errdefs.ErrNotFound)
	}
	return nil
}

// checkRequest refuses what a task of this shim cannot have.
func checkRequest(r *taskapi.CreateTaskRequest) error {
	for what, asked := range map[string]bool{
		"terminal": r.Terminal, "stdin": r.Stdin != "", "stdout": r.Stdout != "", "stderr": r.Stderr != "",
		"checkpoint": r.Checkpoint != "" || r.ParentCheckpoint != "", "rootfs (name it in the specification)": len(r.Rootfs) > 0,
	} {
		if asked {
			return unsupported(what)
		}
	}
	if r.Options == nil || len(r.Options.Value) == 0 {
		return nil
	}
	// Options are for runc. One that is set would be passed over.
	var o options.Options
	if r.Options.TypeUrl != string(o.ProtoReflect().Descriptor().FullName()) {
		return unsupported("options of type " + r.Options.TypeUrl)
	}
	if err := proto.Unmarshal(r.Options.Value, &o); err != nil {
		return fmt.Errorf("options: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if !proto.Equal(&o, &options.Options{}) {
		return unsupported("an option of runc")
	}
	return nil
}

func (a taskAPI) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	t, err := a.s.create(ctx, r)
	if err != nil {
		return nil, err
	}
	return &taskapi.CreateTaskResponse{Pid: uint32(t.c.PID)}, nil
}

func (a taskAPI) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	t, err := a.one(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if err := t.start(ctx); err != nil {
		return nil, err
	}
	return &taskapi.StartResponse{Pid: uint32(t.c.PID)}, nil
}

// one finds a task for a request about its first process.
func (a taskAPI) one(id, execID string) (*task, error) {
	if err := noExec(execID); err != nil {
		return nil, err
	}
	return a.s.find(id)
}

func (a taskAPI) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	if err := noExec(r.ExecID); err != nil {
		return nil, err
	}
	return a.s.delete(ctx, r.ID, false)
}

func (a taskAPI) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	t, err := a.one(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return t.state(), nil
}

func (a taskAPI) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	t, err := a.one(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, t.kill(ctx, unix.Signal(r.Signal), r.All)
}

func (a taskAPI) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	t, err := a.one(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-t.gone:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for task %s: %w", r.ID, ctx.Err())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return &taskapi.WaitResponse{ExitStatus: t.code, ExitedAt: timestamppb.New(t.at)}, nil
}

// Pids lists the init process of a task that has ended, too: containerd takes
// a task without processes for one that was never created when it restarts,
// and would lose how it ended.
func (a taskAPI) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	t, err := a.s.find(r.ID)
	if err != nil {
		return nil, err
	}
	pids, err := t.c.Groups.Processes()
	if err != nil {
		return nil, fmt.Errorf("list processes of task %s: %w", r.ID, err)
	}
	resp := &taskapi.PidsResponse{}
	if len(pids) == 0 {
		pids = []int{t.c.PID}
	}
	for _, pid := range pids {
		resp.Processes = append(resp.Processes, &tasktypes.ProcessInfo{Pid: uint32(pid)})
	}
	return resp, nil
}

func (a taskAPI) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	t, err := a.s.find(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, t.freeze(ctx, true)
}

func (a taskAPI) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	t, err := a.s.find(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, t.freeze(ctx, false)
}

func (a taskAPI) Stats(_ context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	t, err := a.s.find(r.ID)
	if err != nil {
		return nil, err
	}
	body, err := stats(t)
	if err != nil {
		return nil, fmt.Errorf("stats of task %s: %w", r.ID, err)
	}
	return &taskapi.StatsResponse{Stats: body}, nil
}

func (a taskAPI) Update(_ context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	t, err := a.s.find(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, update(t, r.Resources)
}

// Connect answers for a task that is not there as well, with no process: that
// is how containerd looks for the shim itself.
func (a taskAPI) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	resp := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if t, err := a.s.find(r.ID); err == nil {
		resp.TaskPid = uint32(t.c.PID)
	}
	return resp, nil
}

// Shutdown is sent after each deletion; the process ends after the last.
func (a taskAPI) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	a.s.endIfIdle()
	return &emptypb.Empty{}, nil
}

func (taskAPI) Exec(context.Context, *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	return nil, unsupported("exec")
}

func (taskAPI) ResizePty(context.Context, *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	return nil, unsupported("terminals")
}

// CloseIO has nothing to close: standard input is the null device.
func (a taskAPI) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	_, err := a.one(r.ID, r.ExecID)
	return &emptypb.Empty{}, err
}

func (taskAPI) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, errors.Join(unsupported("checkpoints"))
}
