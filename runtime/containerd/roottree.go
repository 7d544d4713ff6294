package containerd

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// rootTree composes all that a function will see, mounted nowhere yet. done gets
// every descriptor that is opened for it, the root's included.
func (s *Sandbox) rootTree(spec runtime.Spec, layers, points []string, ready *prepared, done *closers) (root int, err error) {
	r, base, skel := s.r, s.base, ready.skel
	if !slices.Equal(points, usualPoints()) {
		dir, err := r.skels.get(points)
		if err != nil {
			return -1, err
		}
		if skel, err = idmapped(dir, s.userns); err != nil {
			return -1, err
		}
		done.add(skel)
	}
	up, err := s.upperOf(spec)
	if err != nil {
		return -1, err
	}
	*done = append(*done, up.fds()...)
	root, err = r.compose.composeDetached(skel, layers, s.userns, up, done)
	if err != nil {
		return -1, fmt.Errorf("compose the root file system: %w", err)
	}
	done.add(root)
	if err := place(ready.proc, root, "proc"); err != nil {
		return -1, err
	}
	if err := place(ready.dev, root, "dev"); err != nil {
		return -1, err
	}
	for _, t := range boundTmpfs(spec) {
		fd, known := ready.tmpfs[t.Path]
		if known && !t.Exec {
			err = t.adapt(fd, base, spec.UID, spec.GID)
		} else if fd, err = t.mount(base, spec.UID, spec.GID); err == nil {
			done.add(fd)
		}
		if err != nil {
			return -1, fmt.Errorf("%s: %w", t.Path, err)
		}
		if err := place(fd, root, strings.TrimPrefix(t.Path, "/")); err != nil {
			return -1, err
		}
	}
	for _, m := range spec.Mounts {
		fd, err := s.own(m, spec.UID, spec.GID)
		if err != nil {
			return -1, err
		}
		done.add(fd)
		if err := place(fd, root, strings.TrimPrefix(m.Target, "/")); err != nil {
			return -1, err
		}
	}
	return root, nil
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
