package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/faasd-sec/faasd-sec/image"
)

// bench is one run: what is measured, beside what, and the rows. Its parts are
// started by the first section that needs them and ended by close.
type bench struct {
	options
	*report
	programs []*program
	archives map[string]string // language -> image archive
	world    *world
	floors   *floors
	runc     *runcFloor
	closers  []func() error // in the order of their making
}

func newBench(o options, r *report) *bench {
	return &bench{options: o, report: r, archives: map[string]string{}}
}

// onClose has f called at the end, after what was made later.
func (b *bench) onClose(f func() error) { b.closers = append(b.closers, f) }

// close ends everything, also after an interrupted run.
func (b *bench) close() error {
	var errs error
	for i := len(b.closers) - 1; i >= 0; i-- {
		errs = errors.Join(errs, b.closers[i]())
	}
	b.closers = nil
	return errs
}

// needPrograms builds the functions and their images.
func (b *bench) needPrograms(ctx context.Context) error {
	if b.programs != nil {
		return nil
	}
	dir := filepath.Join(b.scratch, "programs")
	list, err := makePrograms(ctx, dir, b.leave)
	if err != nil {
		return err
	}
	for _, p := range list {
		archive := filepath.Join(dir, p.lang+".tar")
		if err := buildImage(ctx, dir, p, archive); err != nil {
			if ctx.Err() != nil || p.lang != "python" {
				return fmt.Errorf("image of the %s function: %w", p.lang, err)
			}
			b.leave("cold/*/python", "no image with a Python interpreter could be built here: "+err.Error())
			continue
		}
		b.programs, b.archives[p.lang] = append(b.programs, p), archive
	}
	return nil
}

func buildImage(ctx context.Context, dir string, p *program, archive string) error {
	img, err := image.DefaultBuilder(dir).Build(ctx, p.build)
	if err != nil {
		return err
	}
	return errors.Join(img.Save(archive, "bench.invalid/"+p.lang+":latest"), img.Close())
}

// needWorld starts the cluster that most rows are about.
func (b *bench) needWorld(ctx context.Context) error {
	if b.world != nil {
		return nil
	}
	w, err := b.newWorld(ctx, "w")
	if err != nil {
		return err
	}
	b.world = w
	b.onClose(w.close)
	return nil
}

// newWorld starts a cluster that has all images. Who asks for it closes it.
func (b *bench) newWorld(ctx context.Context, name string, nodeArgs ...string) (*world, error) {
	return b.newWorldOf(ctx, name, nil, nodeArgs)
}

// newWorldOf is newWorld with more flags for the coordinator, too.
func (b *bench) newWorldOf(ctx context.Context, name string, args, nodeArgs []string) (*world, error) {
	if err := b.needPrograms(ctx); err != nil {
		return nil, err
	}
	dir := filepath.Join(b.scratch, name)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	w, err := newWorld(ctx, b.bin, dir, args, nodeArgs)
	if err != nil {
		return nil, err
	}
	for _, p := range b.programs {
		img, err := image.OpenArchive(b.archives[p.lang])
		if err == nil {
			err = errors.Join(w.push(ctx, p.lang, img), img.Close())
		}
		if err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	return w, nil
}

// needFloors starts the floors' HTTP and byte servers.
func (b *bench) needFloors(ctx context.Context) error {
	if b.floors != nil {
		return nil
	}
	f, err := startFloors(ctx, b.options)
	if err != nil {
		return err
	}
	b.onClose(func() error { f.stop(); return nil })
	b.floors = f
	return nil
}

// needRunc connects to the cluster's containerd for bare containers.
func (b *bench) needRunc(ctx context.Context) error {
	if b.runc != nil {
		return nil
	}
	if err := b.needWorld(ctx); err != nil {
		return err
	}
	node, err := b.world.find("node")
	if err != nil {
		return err
	}
	f, err := newRuncFloor(node.flag("-containerd"), b.scratch)
	if err != nil {
		return err
	}
	b.onClose(f.close)
	for _, p := range b.programs {
		if err := f.load(ctx, p, b.archives[p.lang]); err != nil {
			return err
		}
	}
	b.runc = f
	return nil
}

// cleanUpContext outlives the run's own, which may have been interrupted.
func cleanUpContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*time.Minute)
}

// scaled is how often something is done in a full and in a quick run.
func (b *bench) scaled(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}
