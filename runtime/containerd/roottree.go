package containerd

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// tree is all that a function will see, mounted nowhere yet.
type tree struct {
	root int
	// parts go into the root, in this order, once it is mounted: kernels before
	// Linux 6.15 mount nothing on what is mounted nowhere.
	parts []part
	later bool
}

// part is a detached mount and the name of its mount point in the root.
type part struct {
	fd   int
	name string
}

// put gives the tree a part.
func (t *tree) put(fd int, name string) error {
	if t.later {
		t.parts = append(t.parts, part{fd, name})
		return nil
	}
	return place(fd, t.root, name)
}

// mountOn moves the tree to where the descriptor at says, in the mount namespace
// that the calling thread is in and nothing foreign has run in.
func (t *tree) mountOn(at int) error {
	if err := unix.MoveMount(t.root, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the function's root: %w", err)
	}
	for _, p := range t.parts {
		if err := mountBeneath(p.fd, t.root, p.name); err != nil {
			return err
		}
	}
	return nil
}

// mountBeneath mounts fd at name within root, wherever the links of an image may
// lead.
func mountBeneath(fd, root int, name string) error {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	at, err := unix.Openat2(root, name, how)
	if err != nil {
		return fmt.Errorf("mount point /%s: %w", name, err)
	}
	defer unix.Close(at)
	if err := unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount on /%s: %w", name, err)
	}
	return nil
}

// rootTree composes a function's tree. done gets every descriptor that is opened
// for it, the root's included.
func (s *Sandbox) rootTree(spec runtime.Spec, layers, points []string, ready *prepared, done *closers) (_ *tree, err error) {
	r, base, skel := s.r, s.base, ready.skel
	if !slices.Equal(points, usualPoints()) {
		dir, err := r.skels.get(points)
		if err != nil {
			return nil, err
		}
		if skel, err = idmapped(dir, s.userns); err != nil {
			return nil, err
		}
		done.add(skel)
	}
	up, err := s.upperOf(spec)
	if err != nil {
		return nil, err
	}
	*done = append(*done, up.fds()...)
	t := &tree{later: !r.compose.detached}
	t.root, err = r.compose.composeDetached(skel, layers, s.userns, up, done, r.shop)
	if err != nil {
		return nil, fmt.Errorf("compose the root file system: %w", err)
	}
	done.add(t.root)
	if err := t.put(ready.proc, "proc"); err != nil {
		return nil, err
	}
	if err := t.put(ready.dev, "dev"); err != nil {
		return nil, err
	}
	if ready.shm >= 0 {
		if err := t.put(ready.shm, "dev/shm"); err != nil {
			return nil, err
		}
	}
	for _, own := range boundTmpfs(spec) {
		fd, known := ready.tmpfs[own.Path]
		if known && !own.Exec {
			err = own.adapt(fd, base, spec.UID, spec.GID)
		} else if fd, err = own.mount(base, spec.UID, spec.GID); err == nil {
			done.add(fd)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", own.Path, err)
		}
		if err := t.put(fd, strings.TrimPrefix(own.Path, "/")); err != nil {
			return nil, err
		}
	}
	for _, m := range spec.Mounts {
		fd, err := s.own(m, spec.UID, spec.GID)
		if err != nil {
			return nil, err
		}
		done.add(fd)
		if err := t.put(fd, strings.TrimPrefix(m.Target, "/")); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// ownTmpfs is a tmpfs of a bound sandbox.
type ownTmpfs struct {
	runtime.Tmpfs
	mode  string
	owned bool // by the function; else by the sandbox's root
}

// boundTmpfs are the same as mounts gives a sandbox that is created with its
// function, outer ones first. /dev/shm is in the prepared /dev.
func boundTmpfs(spec runtime.Spec) []ownTmpfs {
	tmp := spec.Resources.Tmp
	if tmp == 0 {
		tmp = defaultTmp
	}
	all := []ownTmpfs{{runtime.Tmpfs{Path: "/tmp", Bytes: tmp}, "1777", false}}
	for _, t := range withSecrets(spec.Tmpfs) {
		t.Path = filepath.Clean(t.Path)
		all = append(all, ownTmpfs{t, "0700", true})
	}
	slices.SortFunc(all, func(a, b ownTmpfs) int { return strings.Compare(a.Path, b.Path) })
	return all
}
