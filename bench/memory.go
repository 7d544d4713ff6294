package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"
)

// idleMemory reads the proportional set sizes of what waits: per sandbox the
// agent, the launcher and its share of shims, beside the shim of one bare
// container; and the node.
func (b *bench) idleMemory(ctx context.Context) (retErr error) {
	if err := b.needRunc(ctx); err != nil {
		return err
	}
	// As many as a pool holds at the most: what they share, they share by all.
	const waiting = 16
	w, err := b.newWorld(ctx, "idle", "-pool-min", strconv.Itoa(waiting), "-pool-max", strconv.Itoa(waiting))
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, w.close()) }()
	watch, err := w.watch()
	if err != nil {
		return err
	}
	full := func(s nodeState) bool { return s.creating == 0 && s.depth >= waiting }
	if err := watch.until(ctx, "a full pool", 10*time.Millisecond, time.Minute, twice(full)); err != nil {
		return err
	}
	// Agents give memory back once they have waited for a moment.
	if err := (wall{}).Sleep(ctx, time.Now().Add(time.Second)); err != nil {
		return err
	}
	if err := b.runc.start(ctx, b.programs[0].lang); err != nil {
		return err
	}
	bare, err := b.bareShim()
	if err = errors.Join(err, b.runc.remove(ctx)); err != nil {
		return err
	}
	b.add("floor/memory/runc-shim", "MiB", "", []float64{bare})
	all, err := processesOf(w.State())
	if err != nil {
		return err
	}
	pss := map[string][]float64{}
	sum := 0.0
	for _, p := range all {
		v, err := p.memory("Pss")
		if errors.Is(err, fs.ErrNotExist) {
			continue // ended meanwhile
		}
		if err != nil {
			return fmt.Errorf("memory of %s: %w", p.part, err)
		}
		pss[p.part] = append(pss[p.part], v)
		if p.part == "agent" || p.part == "launcher" || p.part == "shim" {
			sum += v
		}
	}
	n := len(pss["agent"])
	if n == 0 {
		return errors.New("no idle sandbox is there to be measured")
	}
	b.add("memory/idle-sandbox", "MiB", "floor/memory/runc-shim", []float64{sum / float64(n)})
	for _, part := range []string{"agent", "launcher", "shim"} {
		b.add("memory/idle-sandbox/"+part, "MiB", "", pss[part])
	}
	b.add("memory/shim-processes-per-sandbox", "1", "", []float64{float64(len(pss["shim"])) / float64(n)})
	b.add("memory/idle-node", "MiB", "", pss["node"])
	return nil
}

// bareShim is the proportional set size of the floor's shim.
func (b *bench) bareShim() (float64, error) {
	shims, err := shimsOf(b.runc.name)
	if err != nil {
		return 0, err
	}
	if len(shims) != 1 {
		return 0, fmt.Errorf("%d shims serve the one bare container", len(shims))
	}
	return shims[0].memory("Pss")
}

// resetPeaks has the kernel forget how much memory the cluster's processes held.
func (w *world) resetPeaks() error {
	all, err := processesOf(w.State())
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := p.resetPeak(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reset the peak of %s: %w", p.part, err)
		}
	}
	return nil
}

// peaks adds the most that each part's largest process held resident.
func (w *world) peaks(into map[string][]float64) error {
	all, err := processesOf(w.State())
	if err != nil {
		return err
	}
	most := map[string]float64{}
	for _, p := range all {
		if v, err := p.memory("VmHWM"); err == nil {
			most[p.part] = max(most[p.part], v)
		}
	}
	for part, v := range most {
		into[part] = append(into[part], v)
	}
	return nil
}
