package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
)

// thaw measures a frozen function to its reply: the call reaches a node that has
// frozen it, and thaws it by a write to its cgroup file; the write is made here,
// before the call; containerd's Resume is, through our own shim; and, as the
// floor, containerd's Resume of a bare container of runc's to the byte that its
// program echoes over a unix socket.
func (b *bench) thaw(ctx context.Context) (err error) {
	if err := b.needRunc(ctx); err != nil {
		return err
	}
	if err := b.runc.start(ctx, "go"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.runc.remove(ctx)) }()
	// Nodes freeze only on purpose in one cluster, and at once in the other.
	awake, err := b.newWorld(ctx, "awake", "-freeze-after", "0", "-pool-max", "0")
	if err != nil {
		return err
	}
	defer awake.close()
	sleepy, err := b.newWorld(ctx, "sleepy", "-freeze-after", "1ms", "-pool-max", "0")
	if err != nil {
		return err
	}
	defer sleepy.close()
	watch, err := sleepy.watch()
	if err != nil {
		return err
	}
	frozen, err := sleepy.running(ctx, "go")
	if err != nil {
		return err
	}
	fn, err := awake.running(ctx, "go")
	if err != nil {
		return err
	}
	id, group, err := awake.sandboxOf(ctx, fn)
	if err != nil {
		return err
	}
	node, err := awake.find("node")
	if err != nil {
		return err
	}
	c, err := client.New(node.flag("-containerd"))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer c.Close()
	ns := namespaces.WithNamespace(ctx, node.flag("-containerd-namespace"))
	container, err := c.LoadContainer(ns, id)
	if err != nil {
		return fmt.Errorf("container of %s: %w", id, err)
	}
	task, err := container.Task(ns, nil)
	if err != nil {
		return fmt.Errorf("task of %s: %w", id, err)
	}
	// A sandbox that stays frozen would outlive the cluster.
	defer func() {
		ctx, cancel := cleanUpContext()
		defer cancel()
		_ = group.Thaw(ctx) // it may be gone with its function
	}()
	hello := func(ctx context.Context) error { _, err := awake.hello(ctx, fn); return err }
	list := []trial{
		{contender: contender{row: "thaw/resume-floor", unit: "ms", call: b.runc.resume}, before: b.runc.pause},
		{contender: contender{row: "thaw/own-shim-resume", floor: "thaw/resume-floor", unit: "ms", call: func(ctx context.Context) error {
			if err := task.Resume(ns); err != nil {
				return fmt.Errorf("resume: %w", err)
			}
			return hello(ctx)
		}}, before: func(context.Context) error { return task.Pause(ns) }},
		{contender: contender{row: "thaw/cgroup-write-to-reply", floor: "thaw/resume-floor", unit: "ms", call: func(ctx context.Context) error {
			if err := group.Thaw(ctx); err != nil {
				return err
			}
			return hello(ctx)
		}}, before: group.Freeze},
		{contender: contender{row: "thaw/to-reply", floor: "thaw/resume-floor", unit: "ms", call: func(ctx context.Context) error {
			_, err := sleepy.hello(ctx, frozen)
			return err
		}}, before: func(ctx context.Context) error {
			return watch.until(ctx, "a frozen sandbox", 10*time.Millisecond, 20*time.Second, func(s nodeState) bool { return s.frozen == 1 })
		}},
	}
	return inTrials(ctx, b.report, list, b.scaled(60, 8))
}

// sandboxOf is the id and the cgroup of a function's only sandbox.
func (w *world) sandboxOf(ctx context.Context, fn api.FunctionName) (string, cgroups.Group, error) {
	st, err := w.client.Describe(ctx, fn)
	if err != nil {
		return "", cgroups.Group{}, err
	}
	if len(st.Sandboxes) != 1 {
		return "", cgroups.Group{}, fmt.Errorf("%s has %d sandboxes and not one", fn.Short(), len(st.Sandboxes))
	}
	id := st.Sandboxes[0].ID
	all, err := processesOf(w.State())
	if err != nil {
		return "", cgroups.Group{}, err
	}
	fs, err := cgroups.Open()
	if err != nil {
		return "", cgroups.Group{}, err
	}
	for _, p := range all {
		if p.sandbox != id {
			continue
		}
		b, err := os.ReadFile(p.dir() + "/cgroup")
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			_, rest, _ := strings.Cut(line, ":")
			_, path, _ := strings.Cut(rest, ":")
			if head, _, ok := strings.Cut(path, "/"+id); ok {
				return id, fs.Group(head + "/" + id), nil
			}
		}
	}
	return "", cgroups.Group{}, fmt.Errorf("no process of sandbox %s is in a cgroup of its name", id)
}
