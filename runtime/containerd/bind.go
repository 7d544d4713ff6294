package containerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// Bind implements runtime.Sandbox. It makes no call to containerd: an image that
// is present, mounts, one thread that steps into the sandbox, and cgroup files
// are all it takes.
func (s *Sandbox) Bind(ctx context.Context, spec runtime.Spec) error {
	fail := func(err error) error { return fmt.Errorf("bind sandbox %s: %w", s.info.ID, err) }
	info := s.Info()
	spec.ID, spec.SocketDir, spec.AgentPath = info.ID, info.SocketDir, "/"
	if err := validate(spec); err != nil {
		return err
	}
	limits, err := s.r.limitsOf(spec)
	if err != nil {
		return err
	}
	dirs := skeletonDirs(spec, false)
	img, err := s.r.imageOf(ctx, &spec)
	if err != nil {
		return fail(err)
	}
	if err := s.r.images.hold(spec.Image.Digest); err != nil { // until its lease does
		return fail(err)
	}
	bound := false
	defer func() {
		if !bound {
			s.r.images.unhold(spec.Image.Digest)
		}
	}()
	if err := s.r.images.mountPoints(img, dirs); err != nil {
		return fail(err)
	}
	h, err := s.claimHandles()
	if err != nil {
		return err
	}
	var done closers
	defer func() {
		if !bound {
			done.close()
			h.close()
		}
	}()
	// A goroutine for this would take longer to start than it does.
	if err := s.limit(h, limits); err != nil {
		return s.goneOr(fail(err))
	}
	tree, err := s.rootTree(spec, img.layers, dirs, &h.mounts, &done)
	if err == nil {
		err = s.r.attach.in(h.mntns, func() error { return tree.mountOn(h.root) })
	}
	if err != nil {
		return s.goneOr(fail(err))
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	s.info.Function, s.info.Revision, s.info.Resources, s.info.Reserved = spec.Function, spec.Revision, spec.Resources, spec.Reserved
	s.info.UID, s.info.GID, s.info.Blank = spec.UID, spec.GID, false
	s.mu.Unlock()
	// From here on a daemon that is killed leaves a sandbox that the next one
	// gives back.
	rec := s.record()
	rec.Labels, rec.Image = s.labels(), spec.Image.Digest
	if err := appendRecord(h.record, rec); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	s.settled = make(chan struct{})
	s.mu.Unlock()
	bound = true
	s.r.spawn(func() {
		s.settle(spec.Image.Digest, func() { done.close(); h.close() })
	})
	return nil
}

// limit gives a blank the function's limits, parent before child, and reads all
// of them back.
func (s *Sandbox) limit(h *handles, limits cgroups.Limits) error {
	s.mu.Lock()
	s.limits = limits
	s.mu.Unlock()
	outer, inner := s.outerLimits(), s.functionLimits()
	if err := h.outer.Apply(outer); err != nil {
		return fmt.Errorf("%w: %w", runtime.ErrLimits, err)
	}
	if err := h.inner.Apply(inner); err != nil {
		return fmt.Errorf("%w: %w", runtime.ErrLimits, err)
	}
	if err := errors.Join(h.outer.Verify(outer), h.inner.Verify(inner)); err != nil {
		return fmt.Errorf("%w: %w", runtime.ErrLimits, err)
	}
	return nil
}

// settlePause is how long a bound sandbox is on its own before containerd hears
// of it. Until then its record alone says what it is.
const settlePause = 300 * time.Millisecond

// settle tells containerd what the sandbox has become: its lease keeps the
// image's layers, its labels show people whose it is.
func (s *Sandbox) settle(digest string, release func()) {
	s.mu.Lock()
	settled := s.settled
	s.mu.Unlock()
	defer close(settled)
	defer s.r.images.unhold(digest)
	// Not now: what containerd does of it would take the processor from the
	// function's start.
	pause := time.NewTimer(settlePause)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-s.ending:
		release()
		return // there will be nothing to give back
	case <-s.r.life.Done():
	}
	release()
	ctx := context.WithoutCancel(s.r.life) // the next daemon is to find it
	err := s.r.createLease(ctx, s.info.ID, digest)
	if err == nil {
		err = s.r.relabel(ctx, s)
	}
	if err == nil {
		return
	}
	// Without them it still serves; only the next daemon would not know it.
	// Its image may then be collected once it is forgotten, which must not
	// happen under a running function: end it, the node starts another.
	s.r.cfg.Log.Error("a bound sandbox could not be recorded and is ended", "sandbox", s.info.ID, "error", err)
	if err := s.proc.signal(unix.SIGKILL); err != nil {
		s.r.cfg.Log.Error("end an unrecorded sandbox", "sandbox", s.info.ID, "error", err)
	}
}

// prepareBind makes what all binds share, or notes why there will be none.
func (r *Runtime) prepareBind() error {
	r.dev = -1
	var err error
	if r.attach, err = newAttacher(unix.CLONE_FS, nil); err != nil {
		return fmt.Errorf("start the thread that enters sandboxes: %w", err)
	}
	if r.noBind = r.cfg.NoBind; r.noBind != nil {
		r.noBind = fmt.Errorf("%w: %w", runtime.ErrUnsupported, r.noBind)
		return nil
	}
	if r.noBind = r.makeShared(); r.noBind != nil {
		r.noBind = fmt.Errorf("%w: sandboxes cannot be made ahead of their functions: %w", runtime.ErrUnsupported, r.noBind)
		r.cfg.Log.Info("no sandboxes ahead of their functions", "reason", r.noBind)
	}
	return nil
}

// makeShared makes the /dev of all blanks, and what composes for them, and tries
// whether the kernel can do with it what Bind does.
func (r *Runtime) makeShared() (err error) {
	if r.dev, err = mountDev(); err != nil {
		return err
	}
	if r.compose.detached {
		return r.probeBind()
	}
	if r.shop, err = newWorkshop(r.cfg.RunDir); err != nil {
		return err
	}
	if err := r.shop.keepDev(r.dev); err != nil {
		return err
	}
	dev, err := r.cloneDev()
	if err == nil {
		_ = unix.Close(dev)
	}
	return err
}

// cloneDev is a detached clone of the /dev of all.
func (r *Runtime) cloneDev() (int, error) {
	if r.shop != nil {
		return r.shop.cloneDev()
	}
	dev, err := unix.OpenTree(r.dev, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("clone a detached mount: %w", err)
	}
	return dev, nil
}

// endBind undoes prepareBind. No Bind may be under way.
func (r *Runtime) endBind() {
	r.attach.close()
	r.shop.close()
	if r.dev >= 0 {
		_ = unix.Close(r.dev)
		r.dev = -1
	}
}

// spawn runs f until it ends, which Close waits for.
func (r *Runtime) spawn(f func()) {
	r.watchers.Add(1)
	go func() {
		defer r.watchers.Done()
		f()
	}()
}

// probeBind tries what Bind does on a tree of its own, and says why not.
func (r *Runtime) probeBind() error {
	dev, err := r.cloneDev()
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	shm, err := mountTmpfs(unix.MOUNT_ATTR_NOSUID, bounded(4096, "0755")...)
	if err != nil {
		return err
	}
	defer unix.Close(shm)
	return place(shm, dev, "shm")
}
