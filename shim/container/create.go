package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/shim/stage"
)

// Container is a created container: its init process waits for Start, runs the
// container's program, or has ended.
type Container struct {
	PID    int
	Groups *Groups
	pidfd  *os.File
	init   *stage.Child // nil once started
}

// Create makes the container of a plan, up to where its program would start.
// After an error nothing of it is left.
func Create(ctx context.Context, plan *Plan) (_ *Container, retErr error) {
	groups, err := GroupsAt(plan.spec.Linux.CgroupsPath)
	if err != nil {
		return nil, err
	}
	existed := groups.Exists()
	defer func() {
		// What was there before belongs to somebody else, who removes it.
		if retErr != nil && !existed {
			retErr = errors.Join(retErr, removeGroups(ctx, groups))
		}
	}()
	member, err := groups.create(plan.limits)
	if err != nil {
		return nil, err
	}
	defer member.close()
	prog, err := stage.New()
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	sources, err := plan.openSources()
	if err != nil {
		return nil, err
	}
	defer sources.close()
	if err := plan.program(prog, member.tasks, sources); err != nil {
		return nil, err
	}
	child, err := prog.Start(plan.namespaces&^unix.CLONE_NEWCGROUP, member.unified)
	if err != nil {
		return nil, err
	}
	// Non-blocking puts it into the Go runtime's poller.
	nerr := unix.SetNonblock(child.PIDFD, true)
	c := &Container{PID: child.PID, Groups: groups, init: child, pidfd: os.NewFile(uintptr(child.PIDFD), "pidfd")}
	if err := errors.Join(nerr, plan.admit(c.PID), child.Proceed()); err != nil {
		// A child that failed already says better why.
		if ferr := child.AwaitReady(ctx); ferr != nil {
			err = errors.Join(ferr, err)
		}
		return nil, errors.Join(err, c.abandon())
	}
	if err := child.AwaitReady(ctx); err != nil {
		return nil, errors.Join(err, c.abandon())
	}
	return c, nil
}

// admit gives the init process its ids and what only the host may set.
func (pl *Plan) admit(pid int) error {
	proc := "/proc/" + strconv.Itoa(pid) + "/"
	if err := os.WriteFile(proc+"uid_map", []byte(pl.uids), 0); err != nil {
		return fmt.Errorf("map user ids: %w", err)
	}
	if err := os.WriteFile(proc+"gid_map", []byte(pl.gids), 0); err != nil {
		return fmt.Errorf("map group ids: %w", err)
	}
	if adj := pl.spec.Process.OOMScoreAdj; adj != nil {
		if err := os.WriteFile(proc+"oom_score_adj", []byte(strconv.Itoa(*adj)), 0); err != nil {
			return fmt.Errorf("process.oomScoreAdj: %w", err)
		}
	}
	for _, l := range pl.rlimits {
		if err := unix.Prlimit(pid, l.resource, &l.Rlimit, nil); err != nil {
			return fmt.Errorf("process.rlimits: set limit %d to %d: %w", l.resource, l.Max, err)
		}
	}
	return nil
}

// abandon ends the init process of a container that cannot be finished.
func (c *Container) abandon() error {
	err := c.Signal(unix.SIGKILL)
	_, werr := c.Wait()
	return errors.Join(err, werr, c.Close())
}

// Start lets the container's program run. It returns once it does.
func (c *Container) Start(ctx context.Context) error {
	if c.init == nil {
		return errors.New("start: the container was started already")
	}
	init := c.init
	c.init = nil
	err := init.Proceed()
	if err == nil {
		err = init.AwaitExec(ctx)
	}
	return errors.Join(err, init.Close())
}

// Close releases what belongs to the process, which must have ended.
func (c *Container) Close() error {
	var err error
	if c.init != nil {
		err = c.init.Close()
		c.init = nil
	}
	return errors.Join(err, c.pidfd.Close())
}
