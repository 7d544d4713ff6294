package cgroups

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Group is one cgroup, by the same path in every hierarchy.
type Group struct {
	fs   FS
	path string
	kept *kept // files that are used open; nil for none
}

// Path is the group's path from the root of its hierarchies.
func (g Group) Path() string { return g.path }

// Child is the group called name inside g.
func (g Group) Child(name string) Group { return Group{fs: g.fs, path: filepath.Join(g.path, name)} }

// Create makes the group in the hierarchies of the given controllers; parents
// must exist. Making what is there already is no error. On v2 the parent must
// hold no process, and Create hands the controllers down to the new group.
func (g Group) Create(controllers ...Controller) error {
	if g.fs.mode == V2 {
		for _, c := range controllers {
			if err := g.parent().delegate(c); err != nil {
				return err
			}
		}
		return g.mkdir(g.fs.dir(Memory, g.path))
	}
	for _, c := range controllers {
		dir := g.fs.dir(c, g.path)
		if dir == "" {
			return fmt.Errorf("create cgroup %s: controller %q is not mounted", g.path, c)
		}
		if err := g.mkdir(dir); err != nil {
			return err
		}
	}
	return nil
}

func (g Group) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create cgroup: %w", err)
	}
	return nil
}

func (g Group) parent() Group { return Group{fs: g.fs, path: filepath.Dir(g.path)} }

// delegate hands controller c down to the children of g, where it is not yet.
func (g Group) delegate(c Controller) error {
	name := g.fs.unifiedName(c)
	if name == "" {
		return nil
	}
	file := filepath.Join(g.fs.dir(c, g.path), "cgroup.subtree_control")
	have, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read delegated controllers: %w", err)
	}
	if containsWord(string(have), name) {
		return nil
	}
	return write(file, "+"+name)
}

// Exists reports whether the group is there in any hierarchy.
func (g Group) Exists() bool {
	for _, h := range g.fs.hierarchies() {
		if exists(filepath.Join(h, g.path)) {
			return true
		}
	}
	return false
}

// Children names the groups directly inside g, in any hierarchy, sorted.
func (g Group) Children() ([]string, error) {
	var names []string
	for _, h := range g.fs.hierarchies() {
		entries, err := os.ReadDir(filepath.Join(h, g.path))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list cgroup %s: %w", g.path, err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Add moves process pid, with all its threads, into the group in the
// hierarchies of the given controllers (v2 has one). Memory that the process
// was charged for stays where it was charged.
func (g Group) Add(pid int, controllers ...Controller) error {
	if g.fs.mode == V2 {
		controllers = []Controller{Memory}
	}
	for _, c := range controllers {
		if err := write(filepath.Join(g.fs.dir(c, g.path), "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("move process %d: %w", pid, err)
		}
	}
	return nil
}

// Contains reports whether process pid is in g or in a group inside g, in the
// hierarchy of controller c.
func (g Group) Contains(c Controller, pid int) (bool, error) {
	path, err := g.fs.pathOf(c, pid)
	if err != nil {
		return false, err
	}
	return path == g.path || strings.HasPrefix(path, g.path+"/"), nil
}

// pathOf is the cgroup of pid in the hierarchy of c, from /proc/PID/cgroup,
// whose lines are "ID:controllers:path".
func (f FS) pathOf(c Controller, pid int) (string, error) {
	file := filepath.Join(f.proc, strconv.Itoa(pid), "cgroup")
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the cgroups of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			return "", fmt.Errorf("%s: line %q is not ID:controllers:path", file, line)
		}
		if f.mode == V2 && parts[0] == "0" && parts[1] == "" {
			return parts[2], nil
		}
		if f.mode != V2 && slices.Contains(strings.Split(parts[1], ","), string(c)) {
			return parts[2], nil
		}
	}
	return "", fmt.Errorf("%s: no line for controller %q", file, c)
}

// Processes lists the processes of g and of all groups inside it, in every
// hierarchy. A group that is gone has none.
func (g Group) Processes() ([]int, error) {
	var pids []int
	for _, h := range g.fs.hierarchies() {
		err := filepath.WalkDir(filepath.Join(h, g.path), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return ignoreGone(err)
			}
			if d.Name() != "cgroup.procs" {
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return ignoreGone(err)
			}
			for line := range strings.FieldsSeq(string(b)) {
				pid, err := strconv.Atoi(line)
				if err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				pids = append(pids, pid)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Remove kills whatever runs in the group, frozen or not, then deletes it and all
// groups inside it in every hierarchy. Removing what is not there is no error.
func (g Group) Remove(ctx context.Context) error {
	if g.path == "/" {
		return errors.New("remove cgroup: refusing to remove the root")
	}
	for {
		pids, err := g.Processes()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if pid <= 1 { // 0 stands for a process of another pid namespace
				return fmt.Errorf("remove cgroup %s: process %d in it is not ours to kill", g.path, pid)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		if len(pids) > 0 {
			if err := g.melt(); err != nil {
				return err
			}
		}
		if err = g.rmdirAll(); err == nil {
			return nil
		}
		// A group stays busy until its last process is reaped.
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w (%w)", g.path, err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// melt thaws the group and all groups inside it where a frozen process does not
// even die, which is on v1: whoever froze it may have been killed since.
func (g Group) melt() error {
	if g.fs.mode == V2 || g.fs.dir(Freezer, g.path) == "" {
		return nil
	}
	return filepath.WalkDir(g.fs.dir(Freezer, g.path), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = write(filepath.Join(path, "freezer.state"), "THAWED")
		}
		return ignoreGone(err)
	})
}

// Prune deletes the group, and then those above it, as long as they are empty:
// a group that holds another or a process stays, in each hierarchy for itself.
func (g Group) Prune() {
	for _, h := range g.fs.hierarchies() {
		for path := g.path; path != "/" && path != "."; path = filepath.Dir(path) {
			if err := syscall.Rmdir(filepath.Join(h, path)); err != nil && !errors.Is(err, syscall.ENOENT) {
				break
			}
		}
	}
}

func (g Group) rmdirAll() error {
	var errs []error
	for _, h := range g.fs.hierarchies() {
		top := filepath.Join(h, g.path)
		var dirs []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return ignoreGone(err)
			}
			if d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err)
		}
		for _, d := range slices.Backward(dirs) {
			if err := syscall.Rmdir(d); err != nil && !errors.Is(err, syscall.ENOENT) {
				errs = append(errs, &fs.PathError{Op: "rmdir", Path: d, Err: err})
			}
		}
	}
	return errors.Join(errs...)
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}
