package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Mode is how a machine lays out its cgroup file systems.
type Mode string

// The layouts.
const (
	V1     Mode = "v1"     // one hierarchy per controller
	Hybrid Mode = "hybrid" // v1 controllers, and a v2 hierarchy without controllers beside them
	V2     Mode = "v2"     // one unified hierarchy
)

// Controller names a cgroup controller as v1 does. On v2 CPUAcct is part of
// CPU, BlockIO is "io" and Freezer and Devices have no controller of their own.
type Controller string

// The controllers this package knows.
const (
	CPU     Controller = "cpu"
	CPUAcct Controller = "cpuacct"
	Memory  Controller = "memory"
	PIDs    Controller = "pids"
	BlockIO Controller = "blkio"
	Freezer Controller = "freezer"
	CPUSet  Controller = "cpuset"
	Devices Controller = "devices"
	Systemd Controller = "systemd" // v1's named hierarchy without a controller
	Unified Controller = "unified" // the v2 hierarchy of a hybrid machine
)

// needed are the controllers without which no limit can be enforced.
func needed() []Controller { return []Controller{CPU, Memory, PIDs} }

// FS is the cgroup file system of a machine. It holds no open files and may be
// copied.
type FS struct {
	root string
	proc string
	mode Mode
	dirs map[Controller]string // v1 and hybrid: where each controller is mounted
}

// ErrNoCgroups means that the machine mounts no usable cgroup hierarchy.
var ErrNoCgroups = errors.New("cgroups: no usable hierarchy")

// Open finds the hierarchies of this machine under /sys/fs/cgroup.
func Open() (FS, error) { return OpenAt("/sys/fs/cgroup", "/proc") }

// OpenAt finds the hierarchies under root; proc is where /proc of the same
// machine is mounted.
func OpenAt(root, proc string) (FS, error) {
	f := FS{root: root, proc: proc}
	if exists(filepath.Join(root, "cgroup.controllers")) {
		f.mode = V2
		have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil {
			return FS{}, fmt.Errorf("read the controllers of cgroup v2: %w", err)
		}
		for _, c := range needed() {
			if name := f.unifiedName(c); name != "" && !containsWord(string(have), name) {
				return FS{}, fmt.Errorf("%w: controller %q is missing in %s (enable it on the kernel command line)", ErrNoCgroups, c, filepath.Join(root, "cgroup.controllers"))
			}
		}
		return f, nil
	}
	f.mode = V1
	f.dirs = make(map[Controller]string)
	entries, err := os.ReadDir(root)
	if err != nil {
		return FS{}, fmt.Errorf("%w: %w", ErrNoCgroups, err)
	}
	// A directory may serve several controllers, "cpu,cpuacct"; distributions
	// add a link per name, but not all do.
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if !exists(filepath.Join(dir, "cgroup.procs")) {
			continue
		}
		for name := range strings.SplitSeq(e.Name(), ",") {
			f.dirs[Controller(name)] = dir
		}
	}
	if _, ok := f.dirs[Unified]; ok {
		f.mode = Hybrid
	}
	for _, c := range needed() {
		if _, ok := f.dirs[c]; !ok {
			return FS{}, fmt.Errorf("%w: controller %q is not mounted below %s", ErrNoCgroups, c, root)
		}
	}
	return f, nil
}

// Mode is the machine's layout.
func (f FS) Mode() Mode { return f.mode }

// Group is the cgroup at path, "/faasd-sec/x", in every hierarchy. It need not
// exist.
func (f FS) Group(path string) Group {
	return Group{fs: f, path: filepath.Clean("/" + path)}
}

// hierarchies lists the directories that hold groups, each once.
func (f FS) hierarchies() []string {
	if f.mode == V2 {
		return []string{f.root}
	}
	seen := make(map[string]bool)
	var out []string
	for _, d := range f.dirs {
		if real, err := filepath.EvalSymlinks(d); err == nil {
			d = real
		}
		if !seen[d] {
			seen[d] = true
			out = append(out, d)
		}
	}
	return out
}

func (f FS) unifiedName(c Controller) string {
	switch c {
	case BlockIO:
		return "io"
	case CPUAcct:
		return "cpu"
	case Freezer:
		return "" // every group but the root has it, whatever is handed down
	}
	return string(c)
}

// dir is where group path keeps the files of controller c, "" if c is not
// mounted.
func (f FS) dir(c Controller, path string) string {
	if f.mode == V2 {
		return filepath.Join(f.root, path)
	}
	d, ok := f.dirs[c]
	if !ok {
		return ""
	}
	return filepath.Join(d, path)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func containsWord(list, word string) bool {
	for w := range strings.FieldsSeq(list) {
		if w == word {
			return true
		}
	}
	return false
}
