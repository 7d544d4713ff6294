package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/faasd-sec/faasd-sec/node"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/scratch"
)

// disks gives sandboxes scratch on this machine's disk.
type disks struct{ keeper *scratch.Keeper }

var _ node.Fitting = disks{}

// lendScratch opens the store below the state directory, where a node lends any.
func lendScratch(ctx context.Context, o options, deps *node.Deps) error {
	if o.capacity.Scratch == 0 {
		return nil
	}
	store, err := scratch.Open(ctx, scratch.Default(filepath.Join(o.state, "scratch")))
	if err != nil {
		return fmt.Errorf("-scratch: %w", err)
	}
	deps.ScratchFree = store.Free
	deps.Fittings = append(deps.Fittings, disks{scratch.NewKeeper(store)})
	return nil
}

func (disks) Parts() []string { return []string{node.PartScratch} }

func (d disks) Attach(ctx context.Context, f node.Fitted) error {
	m, ok := f.Sandbox.(runtime.Mounter)
	if !ok {
		return fmt.Errorf("scratch of sandbox %s: %w: its runtime takes no mounts", f.ID, runtime.ErrUnsupported)
	}
	return d.keeper.Give(ctx, f.ID, f.Needs.Resources.Scratch, func(tree *os.File) error {
		return m.Mount(ctx, runtime.Mount{Tree: tree, Target: runtime.ScratchPath})
	})
}

func (d disks) Detach(ctx context.Context, id string) error { return d.keeper.Take(ctx, id) }

// Recover has nothing to do: a volume belongs to its sandbox, and is gone with it,
// whoever of the two the daemon outlived.
func (disks) Recover(context.Context, []node.Fitted) error { return nil }
