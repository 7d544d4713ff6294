package container

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// makeGroup makes the group at path in one hierarchy, and those above it where
// they are missing. The last must be empty: another container's processes
// would be in it otherwise.
func makeGroup(hierarchy, path string) (string, error) {
	dir := filepath.Join(hierarchy, path)
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return "", fmt.Errorf("create cgroup: %w", err)
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		err = unoccupied(dir)
	}
	if err != nil {
		return "", fmt.Errorf("create cgroup: %w", err)
	}
	if slices.Contains(strings.Split(filepath.Base(hierarchy), ","), "cpuset") {
		if err := inheritCPUSet(dir, hierarchy); err != nil {
			return "", fmt.Errorf("create cgroup: %w", err)
		}
	}
	return dir, nil
}

func unoccupied(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err == nil && len(b) > 0 {
		err = fmt.Errorf("%s has processes already", dir)
	}
	return err
}

// inheritCPUSet fills what a new cpuset group begins without, and without
// which it can have no process. A group above that is empty as well, since
// another create has not filled it yet, is filled first; top never is.
func inheritCPUSet(dir, top string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(have)) > 0 || dir == top {
			continue
		}
		parent := filepath.Dir(dir)
		if err := inheritCPUSet(parent, top); err != nil {
			return err
		}
		value, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0); err != nil {
			return err
		}
	}
	return nil
}
