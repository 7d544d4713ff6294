package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// runcFloor starts bare containers with containerd's own client and its
// defaults: no user namespace, no seccomp, no limits, no network set-up. It uses
// the cluster's own containerd, under a namespace of its own.
type runcFloor struct {
	client *client.Client
	name   string                  // of the namespace and of the cgroup
	images map[string]client.Image // by language
	progs  map[string]*program
	bell   *doorbell
	serial int
	live   *bare
}

// bellAt is where a bare container finds the doorbell.
const bellAt = "/bench"

func newRuncFloor(socket, dir string) (_ *runcFloor, err error) {
	f := &runcFloor{name: fmt.Sprintf("bench-floor-%d", os.Getpid()), images: map[string]client.Image{}, progs: map[string]*program{}}
	if f.bell, err = newDoorbell(filepath.Join(dir, "bare")); err != nil {
		return nil, err
	}
	f.client, err = client.New(socket, client.WithDefaultNamespace(f.name), client.WithTimeout(10*time.Second))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("floor: connect to containerd: %w", err), f.bell.close())
	}
	return f, nil
}

// load imports and unpacks a program's image from an archive.
func (f *runcFloor) load(ctx context.Context, p *program, archive string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	imgs, err := f.client.Import(ctx, file)
	if err != nil {
		return fmt.Errorf("floor: import the %s image: %w", p.lang, err)
	}
	if len(imgs) != 1 {
		return fmt.Errorf("floor: the archive of the %s image holds %d images", p.lang, len(imgs))
	}
	img := client.NewImage(f.client, imgs[0])
	if err := img.Unpack(ctx, ""); err != nil {
		return fmt.Errorf("floor: unpack the %s image: %w", p.lang, err)
	}
	f.images[p.lang], f.progs[p.lang] = img, p
	return nil
}

// bare is one bare container.
type bare struct {
	namespace string
	container client.Container
	task      client.Task
	conn      net.Conn
}

// start creates and starts a container and returns with its first byte.
func (f *runcFloor) start(ctx context.Context, lang string) (retErr error) {
	f.serial++
	b := &bare{namespace: f.name}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, b.remove())
		}
	}()
	id := fmt.Sprintf("bare-%d", f.serial)
	img := f.images[lang]
	var err error
	b.container, err = f.client.NewContainer(ctx, id, client.WithImage(img), client.WithNewSnapshot(id, img), client.WithNewSpec(
		oci.WithImageConfig(img), oci.WithProcessArgs(f.progs[lang].argv...), oci.WithEnv([]string{dialEnv + "=" + bellAt + "/" + doorbellName}),
		oci.WithMounts([]specs.Mount{{Destination: bellAt, Type: "bind", Source: f.bell.dir, Options: []string{"rbind", "rw"}}})))
	if err != nil {
		return fmt.Errorf("floor: create: %w", err)
	}
	if b.task, err = b.container.NewTask(ctx, cio.NullIO); err != nil {
		return fmt.Errorf("floor: new task: %w", err)
	}
	if err := b.task.Start(ctx); err != nil {
		return fmt.Errorf("floor: start: %w", err)
	}
	if b.conn, err = f.bell.rung(ctx); err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	f.live = b
	return nil
}

// pause freezes the last container that start made.
func (f *runcFloor) pause(ctx context.Context) error { return f.live.task.Pause(ctx) }

// resume thaws it by containerd's Resume, and returns with a byte that its
// program, started as Go's, has echoed.
func (f *runcFloor) resume(ctx context.Context) error {
	if err := f.live.task.Resume(ctx); err != nil {
		return fmt.Errorf("floor: resume: %w", err)
	}
	return f.live.echo(ctx)
}

// echo has the program echo one byte.
func (b *bare) echo(ctx context.Context) error {
	if at, ok := ctx.Deadline(); ok {
		if err := b.conn.SetDeadline(at); err != nil {
			return err
		}
	}
	one := []byte{'2'}
	if _, err := b.conn.Write(one); err != nil {
		return fmt.Errorf("floor: write to the program: %w", err)
	}
	if _, err := io.ReadFull(b.conn, one); err != nil {
		return fmt.Errorf("floor: read from the program: %w", err)
	}
	return nil
}

// remove ends the last container that start made.
func (f *runcFloor) remove(context.Context) error {
	b := f.live
	f.live = nil
	if b == nil {
		return nil
	}
	return b.remove()
}

// remove ends a container and deletes it, also after the run was interrupted.
func (b *bare) remove() (errs error) {
	ctx, cancel := cleanUpContext()
	defer cancel()
	ctx = namespaces.WithNamespace(ctx, b.namespace)
	if b.conn != nil {
		b.conn.Close()
	}
	if b.task != nil {
		if exit, err := b.task.Wait(ctx); err == nil {
			_ = b.task.Kill(ctx, syscall.SIGKILL) // it may have ended by itself
			select {
			case <-exit:
			case <-ctx.Done():
			}
		}
		_, err := b.task.Delete(ctx, client.WithProcessKill)
		errs = errors.Join(errs, err)
	}
	if b.container != nil {
		errs = errors.Join(errs, b.container.Delete(ctx, client.WithSnapshotCleanup))
	}
	return errs
}

// close removes everything of the floor from containerd.
func (f *runcFloor) close() error {
	ctx, cancel := cleanUpContext()
	defer cancel()
	err := f.remove(ctx)
	for _, img := range f.images {
		err = errors.Join(err, f.client.ImageService().Delete(ctx, img.Name()))
	}
	err = errors.Join(err, f.client.Close(), f.bell.close())
	// runc leaves the parents of the cgroups that it made.
	dirs, gerr := filepath.Glob("/sys/fs/cgroup/*/" + f.name)
	for _, d := range append(dirs, "/sys/fs/cgroup/"+f.name) {
		if rerr := os.Remove(d); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return errors.Join(err, gerr)
}
