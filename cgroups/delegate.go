package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// delegated are the controllers that groups of sandboxes are limited by, in the
// names of v2. Those that the machine lacks and that are not needed are left out.
func delegated() []Controller { return append(needed(), BlockIO, CPUSet) }

// Delegate makes g and the groups above it where they are missing, and has the
// kernel hand the controllers that limit sandboxes down to every group inside g.
// It is for v2 alone, where a group without them has no limits; no group from the
// root's children down to g may hold a process, or the kernel refuses.
// (Documentation/admin-guide/cgroup-v2.rst, "Controlling Controllers")
func (g Group) Delegate() error {
	if g.fs.mode != V2 {
		return fmt.Errorf("delegate controllers of %s: this machine has cgroup %s", g.path, g.fs.mode)
	}
	at := Group{fs: g.fs, path: "/"}
	names := strings.Split(strings.Trim(g.path, "/"), "/")
	for i := 0; ; i++ {
		if err := at.handDown(); err != nil {
			return err
		}
		if i == len(names) || names[i] == "" {
			return nil
		}
		at = at.Child(names[i])
		if err := at.mkdir(g.fs.dir(Memory, at.path)); err != nil {
			return err
		}
	}
}

// handDown delegates to the children of g what it was handed itself.
func (g Group) handDown() error {
	dir := g.fs.dir(Memory, g.path)
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return fmt.Errorf("read delegated controllers: %w", err)
	}
	given := ""
	for _, c := range delegated() {
		name := g.fs.unifiedName(c)
		if containsWord(string(have), name) {
			continue
		}
		if given == "" {
			b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
			if err != nil {
				return fmt.Errorf("read available controllers: %w", err)
			}
			given = string(b)
		}
		if !containsWord(given, name) && (c == BlockIO || c == CPUSet) {
			continue
		}
		if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+name); err != nil {
			return fmt.Errorf("delegate controller %q of %s: %w", name, g.path, err)
		}
	}
	return nil
}
