package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

var idForm = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// validate checks what does not need the machine.
func validate(s runtime.Spec) error {
	switch {
	case !idForm.MatchString(s.ID):
		return api.Invalid("id", "use 1 to 64 of a-z, 0-9 and '-'", fmt.Sprintf("%q", s.ID))
	case !filepath.IsAbs(s.AgentPath):
		return api.Invalid("agent_path", "give an absolute path", fmt.Sprintf("%q", s.AgentPath))
	case !filepath.IsAbs(s.SocketDir) || filepath.Clean(s.SocketDir) == "/":
		return api.Invalid("socket_dir", "give the absolute path of a directory of this sandbox alone", fmt.Sprintf("%q", s.SocketDir))
	case s.UID < 0 || s.GID < 0 || s.UID >= 65535 || s.GID >= 65535:
		return api.Invalid("uid", "use 1 to 65534, or 0 for the image's", fmt.Sprintf("%d:%d", s.UID, s.GID))
	case len(s.Reserved) > runtime.MaxReserved || !utf8.ValidString(s.Reserved):
		return api.Invalid("reserved", fmt.Sprintf("use at most %d bytes of UTF-8", runtime.MaxReserved), fmt.Sprintf("%d bytes", len(s.Reserved)))
	case s.Resources.Tmp < 0 || s.Resources.Tmp > s.Resources.Memory:
		return api.Invalid("tmp", "keep it within the memory limit, which it is part of", fmt.Sprintf("%d bytes", s.Resources.Tmp))
	case s.Resources.Storage < 0 || s.Resources.Storage > s.Resources.Memory-s.Resources.Tmp:
		return api.Invalid("storage", "keep it, together with tmp, within the memory limit, which it is part of", fmt.Sprintf("%d bytes", s.Resources.Storage))
	}
	for _, t := range s.Tmpfs {
		if err := checkTmpfs(t); err != nil {
			return err
		}
	}
	return checkMounts(s)
}

// checkTmpfs keeps a function's own mounts off the paths that isolate it.
func checkTmpfs(t runtime.Tmpfs) error {
	if err := checkTarget("tmpfs", t.Path); err != nil {
		return err
	}
	if t.Bytes <= 0 {
		return api.Invalid("tmpfs", "give its size in bytes", fmt.Sprintf("%s has %d", t.Path, t.Bytes))
	}
	return nil
}

// checkAgent demands a program that everybody may run and nobody else may
// change: it will be PID 1.
func checkAgent(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	mode := info.Mode()
	if !mode.IsRegular() || mode.Perm()&0o005 != 0o005 || mode.Perm()&0o022 != 0 {
		return api.Invalid("agent_path", "chmod 0755 it", fmt.Sprintf("%s has mode %v; it must be a program for all to read and run, and for its owner alone to write", path, mode))
	}
	return nil
}

// Create implements runtime.Runtime.
func (r *Runtime) Create(ctx context.Context, spec runtime.Spec) (runtime.Sandbox, error) {
	return r.create(ctx, spec, false)
}

// create makes a sandbox of a function, or a blank, whose spec names none.
func (r *Runtime) create(ctx context.Context, spec runtime.Spec, blank bool) (_ runtime.Sandbox, retErr error) {
	if err := validate(spec); err != nil {
		return nil, err
	}
	limits, err := r.limitsOf(spec)
	if err != nil {
		return nil, err
	}
	if err := checkAgent(spec.AgentPath); err != nil {
		return nil, err
	}
	if err := r.reserve(spec.ID); err != nil {
		return nil, err
	}
	undo := unwinder{timeout: r.cfg.UnwindTimeout}
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("create sandbox %s: %w", spec.ID, undo.run(r.life, retErr))
			r.release(spec.ID)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CreateTimeout)
	defer cancel()
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for %d other creates: %w", r.cfg.MaxCreates, err)
	}
	defer r.slots.Release(1)

	var img heldImage
	start := api.StartPooled
	if !blank {
		start = api.StartPlain
		if img, err = r.imageOf(ctx, &spec); err != nil {
			return nil, err
		}
	}
	rng, err := r.ranges.lend()
	if err != nil {
		return nil, err
	}
	undo.add("return user ids", func(context.Context) error { r.ranges.giveBack(rng.base); return nil })

	info := runtime.Info{
		ID: spec.ID, Function: spec.Function, Revision: spec.Revision, SocketDir: spec.SocketDir,
		Resources: spec.Resources, Reserved: spec.Reserved, UID: spec.UID, GID: spec.GID, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
		Start: start, Blank: blank,
	}
	s := &Sandbox{r: r, info: info, base: rng.base, limits: limits, group: r.cgroups.Group(r.cgroupPath(spec.ID)), gone: make(chan struct{}), ending: make(chan struct{})}
	undo.add("remove what was made", s.destroy)
	s.userns = rng.userns
	if blank {
		err = s.buildBlank(ctx, spec)
	} else {
		err = s.build(ctx, spec, img, rng)
	}
	if err != nil {
		return nil, err
	}
	release, err := ownSocketDir(spec.SocketDir, rng.base)
	if err != nil {
		return nil, err
	}
	undo.add("return the socket directory", func(context.Context) error { return release() })
	if err := s.boot(ctx); err != nil {
		return nil, err
	}
	r.adopt(s)
	return s, nil
}

// imageOf is the image that spec names, with what spec leaves to it decided.
func (r *Runtime) imageOf(ctx context.Context, spec *runtime.Spec) (heldImage, error) {
	if img, ok := r.images.get(spec.Image.Digest); ok {
		return img, settleUser(spec, img)
	}
	dgst, err := digest.Parse(spec.Image.Digest)
	if err != nil {
		return heldImage{}, api.Invalid("image", "use what Pull returned", fmt.Sprintf("digest %q: %v", spec.Image.Digest, err))
	}
	if _, err := r.present(ctx, dgst); err != nil {
		return heldImage{}, err
	}
	img, ok := r.images.get(spec.Image.Digest)
	if !ok {
		return heldImage{}, fmt.Errorf("image %s was forgotten meanwhile", dgst)
	}
	return img, settleUser(spec, img)
}

// settleUser decides the function's ids.
func settleUser(spec *runtime.Spec, img heldImage) error {
	if spec.UID != 0 && spec.GID == 0 {
		spec.GID = spec.UID
	}
	if spec.UID == 0 {
		if img.userErr != nil {
			return img.userErr
		}
		spec.UID, spec.GID = img.uid, img.gid
	}
	return nil
}

// build makes everything on the host up to the container, which it does not
// start. What it made when it fails is removed by destroy.
func (s *Sandbox) build(ctx context.Context, spec runtime.Spec, img heldImage, rng idRange) error {
	r := s.r
	if err := r.writeRecord(s.record()); err != nil {
		return err
	}
	dirs := skeletonDirs(spec, true)
	if err := checkMountPoints(dirs, img.layers); err != nil {
		return err
	}
	skel, err := r.skels.get(dirs)
	if err != nil {
		return err
	}
	if err := r.createLease(ctx, spec.ID, spec.Image.Digest); err != nil {
		return err
	}
	scratch := filepath.Join(r.dir(spec.ID), "layers")
	for _, d := range []string{r.rootfs(spec.ID), scratch} {
		if err := os.Mkdir(d, 0o711); err != nil {
			return fmt.Errorf("make the sandbox's directory: %w", err)
		}
	}
	up, err := s.upperOf(spec)
	if err != nil {
		return err
	}
	err = r.compose.compose(r.rootfs(spec.ID), scratch, append([]string{skel}, img.layers...), rng.userns, up)
	up.close()
	if err != nil {
		return fmt.Errorf("compose the root file system: %w", err)
	}
	if err := s.attachMounts(spec, r.rootfs(spec.ID)); err != nil {
		return err
	}
	return r.createContainer(ctx, s, r.ociSpec(spec, s.group.Path(), rng.base, s.outerLimits()))
}

// boot creates the task, checks its limits and starts the agent.
func (s *Sandbox) boot(ctx context.Context) error {
	pid, err := s.r.createTask(ctx, s.info.ID)
	if err != nil {
		return err
	}
	s.info.PID = pid
	// The init process waits for its start, as our shim's child: its pid cannot
	// have been reused yet.
	if s.proc, err = openProcess(pid); err != nil {
		return err
	}
	if err := errors.Join(ctx.Err(), s.confine()); err != nil {
		return err
	}
	return s.r.startTask(ctx, s.info.ID)
}

// outerLimits are those of the sandbox's own cgroup: the function's and what
// the agent needs.
func (s *Sandbox) outerLimits() cgroups.Limits {
	l := s.limits
	over := runtime.AgentOverhead()
	pids := *l.PIDs + over.PIDs
	l.PIDs = &pids
	l.Memory = &cgroups.MemoryLimit{Bytes: l.Memory.Bytes + over.Memory}
	return l
}

// functionGroup is the cgroup of the launcher and all it starts. CPU and I/O
// are limited by the sandbox's cgroup alone.
func (s *Sandbox) functionGroup() cgroups.Group { return s.group.Child("fn") }

func (s *Sandbox) functionLimits() cgroups.Limits {
	return cgroups.Limits{Memory: s.limits.Memory, PIDs: s.limits.PIDs}
}

// confine writes the limits, parent before child, and reads all of them back.
// It runs before the first instruction of the agent, so that nothing has ever
// run without them; any difference ends the start.
func (s *Sandbox) confine() error {
	fail := func(err error) error { return fmt.Errorf("%w: %w", runtime.ErrLimits, err) }
	if err := s.group.Apply(s.outerLimits()); err != nil {
		return fail(err)
	}
	if s.r.cgroups.Mode() == cgroups.V2 {
		// A v2 group with limited children must not hold processes itself.
		leaf := s.group.Child("agent")
		if err := leaf.Create(); err != nil {
			return fail(err)
		}
		if err := leaf.Add(s.info.PID); err != nil {
			return fail(err)
		}
	}
	fn := s.functionGroup()
	if err := fn.Create(cgroups.Memory, cgroups.PIDs); err != nil {
		return fail(err)
	}
	if err := fn.Apply(s.functionLimits()); err != nil {
		return fail(err)
	}
	if err := errors.Join(s.group.Verify(s.outerLimits()), fn.Verify(s.functionLimits())); err != nil {
		return fail(err)
	}
	in, err := s.group.Contains(cgroups.Memory, s.info.PID)
	if err != nil {
		return fail(err)
	}
	if !in {
		return fail(fmt.Errorf("process %d is not in cgroup %s", s.info.PID, s.group.Path()))
	}
	return nil
}
