package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/faasd-sec/faasd-sec/shim/container"
)

// Launch says how the start command brings the group's process up.
type Launch struct {
	Program string   // this program
	Args    []string // with which it serves on the listener that is its descriptor 3
	Env     []string
}

// Start makes sure that the group's process runs and expects task id, writes
// its address into the bundle, where containerd looks for it after a restart,
// and returns it.
func Start(ctx context.Context, g Group, id, bundle string, l Launch) (string, error) {
	lock, err := g.lock(true)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	err = reserve(ctx, g, id)
	if errors.Is(err, errNone) {
		if err = spawn(g, l); err == nil {
			err = reserve(ctx, g, id)
		}
	}
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(bundle, "address"), []byte(g.URL()), 0o600); err != nil {
		return "", fmt.Errorf("write the shim's address: %w", err)
	}
	return g.URL(), nil
}

// reserve keeps the group's process from ending before the task is created.
func reserve(ctx context.Context, g Group, id string) error {
	conn, err := g.dial()
	if err != nil {
		return err
	}
	c := ttrpc.NewClient(conn)
	defer c.Close()
	if err := c.Call(ctx, ownService, "Expect", &taskapi.ConnectRequest{ID: id}, &emptypb.Empty{}); err != nil {
		return fmt.Errorf("announce task %s to the shim: %w", id, err)
	}
	return nil
}

// spawn starts the group's process with a socket that is there already.
func spawn(g Group, l Launch) error {
	listener, err := g.listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	f, err := listener.File()
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	defer f.Close()
	cmd := exec.Command(l.Program, l.Args...)
	cmd.Args[0] = l.Program
	cmd.Env = l.Env
	cmd.Dir = "/" // not the bundle, which it outlives
	cmd.ExtraFiles = []*os.File{f}
	// A session of its own: it outlives containerd, whose service manager may
	// signal a whole group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	if err := cmd.Process.Release(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	return nil
}

// forgetTimeout is how long the group's process may take to end a task before
// that is done without it. containerd gives the delete command 5 s.
const forgetTimeout = 3 * time.Second

// Delete ends and removes what is left of a task that containerd has lost, or
// has deleted, and says how it ended.
func Delete(ctx context.Context, g Group, id, bundle string) (*taskapi.DeleteResponse, error) {
	resp, err := askToForget(ctx, g, id)
	if err == nil {
		return resp, nil
	}
	// There is no shim, or none that answers: the groups hold what it made.
	if err := cleanUp(ctx, bundle); err != nil {
		return nil, fmt.Errorf("clean up after task %s: %w", id, err)
	}
	return &taskapi.DeleteResponse{ExitStatus: killed, ExitedAt: timestamppb.Now()}, nil
}

func askToForget(ctx context.Context, g Group, id string) (*taskapi.DeleteResponse, error) {
	conn, err := g.dial()
	if err != nil {
		return nil, err
	}
	c := ttrpc.NewClient(conn)
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	resp := &taskapi.DeleteResponse{}
	return resp, c.Call(ctx, ownService, "Forget", &taskapi.ConnectRequest{ID: id}, resp)
}

// cleanUp removes a container by its bundle alone. A bundle without a
// specification never had one.
func cleanUp(ctx context.Context, bundle string) error {
	groups, err := container.GroupsOf(bundle)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return groups.Remove(ctx)
}
