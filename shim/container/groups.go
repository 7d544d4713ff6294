package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/cgroups"
)

const cgroupMount = "/sys/fs/cgroup"

// Groups are the cgroups of one container, by the same path in every
// hierarchy.
type Groups struct {
	fs    cgroups.FS
	group cgroups.Group
	path  string
}

// GroupsAt names the groups at path, which need not exist.
func GroupsAt(path string) (*Groups, error) {
	f, err := cgroups.Open()
	if err != nil {
		return nil, err
	}
	return &Groups{fs: f, group: f.Group(path), path: path}, nil
}

// GroupsOf names the groups of a bundle's container. It reads no more of the
// specification than it has to: what another version of this package made must
// be found as well.
func GroupsOf(bundle string) (*Groups, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the specification: %w", err)
	}
	var s struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("parse the specification: %w", err)
	}
	if !cleanPath(s.Linux.CgroupsPath) {
		return nil, refused("linux.cgroupsPath", "a clean absolute path below the root")
	}
	return GroupsAt(s.Linux.CgroupsPath)
}

// hierarchies gives the mounted v1 hierarchies, each once, and the v2
// hierarchy, alone or beside them, "" if there is none.
func (g *Groups) hierarchies() (v1 []string, unified string, err error) {
	if g.fs.Mode() == cgroups.V2 {
		return nil, cgroupMount, nil
	}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil, "", fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(cgroupMount, e.Name())
		if e.Type()&fs.ModeSymlink != 0 { // "cpu" for "cpu,cpuacct"
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, "cgroup.procs")); err != nil {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, "tasks")); err == nil {
			v1 = append(v1, dir)
		} else {
			unified = dir
		}
	}
	return v1, unified, nil
}

// membership is what a process needs to begin in its groups.
type membership struct {
	tasks   []int // files to write 0 to, one of each v1 hierarchy
	unified int   // directory of the v2 hierarchy, or -1
}

func (m *membership) close() {
	for _, fd := range m.tasks {
		_ = unix.Close(fd)
	}
	if m.unified >= 0 {
		_ = unix.Close(m.unified)
	}
}

// create makes the groups in every hierarchy, denies devices and sets the
// limits, all before there is a process to hold to them.
func (g *Groups) create(l cgroups.Limits) (_ *membership, retErr error) {
	v1, unified, err := g.hierarchies()
	if err != nil {
		return nil, err
	}
	m := &membership{unified: -1}
	defer func() {
		if retErr != nil {
			m.close()
		}
	}()
	if unified != "" {
		if err := g.enterUnified(m, unified); err != nil {
			return nil, err
		}
	}
	devices := len(v1) == 0
	for _, h := range v1 {
		dir, err := makeGroup(h, g.path)
		if err != nil {
			return nil, err
		}
		for name := range strings.SplitSeq(filepath.Base(h), ",") {
			if name == "devices" {
				devices = true
				if err := restrictDevices(dir); err != nil {
					return nil, err
				}
			}
		}
		fd, err := unix.Open(filepath.Join(dir, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open cgroup %s: %w", dir, err)
		}
		m.tasks = append(m.tasks, fd)
	}
	if !devices {
		return nil, fmt.Errorf("the devices controller is not mounted below %s, so that device rules would not hold", cgroupMount)
	}
	return m, g.group.Apply(l)
}

// enterUnified makes the group of the v2 hierarchy. Where that is the only one, it
// has the controllers, and the device rules are a program.
func (g *Groups) enterUnified(m *membership, hierarchy string) error {
	alone := g.fs.Mode() == cgroups.V2
	if alone {
		if err := g.fs.Group(filepath.Dir(g.path)).Delegate(); err != nil {
			return err
		}
	}
	dir, err := makeGroup(hierarchy, g.path)
	if err != nil {
		return err
	}
	if m.unified, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open cgroup %s: %w", dir, err)
	}
	if !alone {
		return nil
	}
	prog, err := usualDevices()
	if err != nil {
		return err
	}
	return attachProgram(m.unified, prog)
}

// Update changes the limits.
func (g *Groups) Update(l cgroups.Limits) error { return g.group.Apply(l) }

// Processes lists the processes of the container.
func (g *Groups) Processes() ([]int, error) { return g.group.Processes() }

// Mode is the layout of the machine's cgroups.
func (g *Groups) Mode() cgroups.Mode { return g.fs.Mode() }

// Usage is what the container uses.
func (g *Groups) Usage() (cgroups.Usage, error) { return g.group.Usage() }

// Freeze stops all processes of the container, Thaw lets them go on.
func (g *Groups) Freeze(ctx context.Context) error { return g.group.Freeze(ctx) }

// Thaw undoes Freeze.
func (g *Groups) Thaw(ctx context.Context) error { return g.group.Thaw(ctx) }

// Exists reports whether any of the groups is there.
func (g *Groups) Exists() bool { return g.group.Exists() }

// Remove kills what is left in the groups and deletes them.
func (g *Groups) Remove(ctx context.Context) error {
	// Nearly always the last process has ended with its pid namespace, and
	// nobody has to be looked for.
	if g.removeEmpty() == nil {
		return nil
	}
	return g.group.Remove(ctx)
}

// removeEmpty deletes the groups, with those inside them, if they are empty.
func (g *Groups) removeEmpty() error {
	v1, unified, err := g.hierarchies()
	if err != nil {
		return err
	}
	if unified != "" {
		v1 = append(v1, unified)
	}
	for _, h := range v1 {
		if err := rmdirs(filepath.Join(h, g.path)); err != nil {
			return err
		}
	}
	return nil
}

// rmdirs removes a directory of groups, and what is not there without a word.
func rmdirs(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	inside := false
	for _, e := range entries {
		if e.IsDir() {
			inside = true
			if err := rmdirs(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if !inside {
		return err
	}
	return unix.Rmdir(dir)
}
