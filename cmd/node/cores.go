package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/node"
)

// cores pins sandboxes to the cores of their own that they hold. A pinned group ends
// with its sandbox, and with it the pinning.
type cores struct{}

var _ node.Fitting = cores{}

// lendCores refuses to lend cores that this machine has not.
func lendCores(o options, machine cgroups.FS, deps *node.Deps) error {
	if len(o.cores) == 0 {
		return nil
	}
	have, err := machine.Pinnable()
	if err != nil {
		return fmt.Errorf("-pin-cores: %w", err)
	}
	if !have.Has(o.cores) {
		return api.Invalid("pin-cores", "name some of "+have.String(), "this machine has not all of "+o.cores.String())
	}
	deps.Fittings = append(deps.Fittings, cores{})
	return nil
}

func (cores) Parts() []string { return []string{node.PartCores} }

func (cores) Attach(_ context.Context, f node.Fitted) error {
	in, ok := f.Sandbox.(interface {
		Cgroups() (sandbox, function cgroups.Group)
	})
	if !ok || int64(len(f.Cores)) != f.Needs.Resources.Cores {
		return fmt.Errorf("sandbox %s cannot be pinned: it holds %d cores of the %d that it needs", f.ID, len(f.Cores), f.Needs.Resources.Cores)
	}
	group, _ := in.Cgroups()
	there, err := group.Contains(cgroups.CPUSet, f.PID)
	if err == nil && !there {
		err = fmt.Errorf("process %d of sandbox %s is not in cgroup %s", f.PID, f.ID, group.Path())
	}
	if err != nil {
		return err
	}
	return group.Pin(f.Cores)
}

func (cores) Detach(context.Context, string) error { return nil }

// Recover pins those again that run: what a core's absence did to them meanwhile is
// undone, or found out. One that has just ended is nobody's to pin.
func (c cores) Recover(ctx context.Context, live []node.Fitted) error {
	var errs error
	for _, f := range live {
		err := c.Attach(ctx, f)
		if _, gone := os.Stat(fmt.Sprintf("/proc/%d", f.PID)); errors.Is(gone, fs.ErrNotExist) {
			continue
		}
		errs = errors.Join(errs, err)
	}
	return errs
}
