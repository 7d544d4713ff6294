package container

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// sources are detached copies of what is bound into a container, by where they
// go. The shim opens them, under its own eyes and rights: below the directories
// on the way the container's root may not be able to walk.
type sources map[string]int

// openSources opens the sources of all bind mounts, with their attributes set.
func (pl *Plan) openSources() (_ sources, retErr error) {
	out := make(sources)
	defer func() {
		if retErr != nil {
			out.close()
		}
	}()
	for _, m := range pl.mounts {
		if m.kind != "bind" {
			continue
		}
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		attr := uint(unix.AT_EMPTY_PATH)
		if m.all {
			flags |= unix.AT_RECURSIVE
			attr |= unix.AT_RECURSIVE
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.source, flags)
		if err != nil {
			return nil, fmt.Errorf("mounts: open %s: %w", m.source, err)
		}
		out[m.at] = fd
		if err := unix.MountSetattr(fd, "", attr, &unix.MountAttr{Attr_set: m.attrs}); err != nil {
			return nil, fmt.Errorf("mounts: attributes of %s: %w", m.source, err)
		}
	}
	return out, nil
}

// list is all descriptors.
func (s sources) list() []int {
	fds := make([]int, 0, len(s))
	for _, fd := range s {
		fds = append(fds, fd)
	}
	return fds
}

func (s sources) close() {
	for _, fd := range s {
		_ = unix.Close(fd)
	}
}
