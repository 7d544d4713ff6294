package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// The skeleton is the topmost layer of every sandbox's root: the mount points,
// which a read-only root could not be given otherwise, and the few files that
// must be ours whatever the image says. One is made per set of mount points
// and shared.

// skeletonFiles are the files of every skeleton of a function. agent asks for
// the mount point of the agent's binary as well.
func skeletonFiles(agent bool) map[string]string {
	files := map[string]string{
		"etc/hosts":       "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
		"etc/resolv.conf": "", // there is no network to resolve names on
		"etc/hostname":    "sandbox\n",
	}
	if agent {
		files[agentFile()] = "" // mounted over
	}
	return files
}

// agentFile is where the agent's binary is mounted.
func agentFile() string { return strings.TrimPrefix(api.AgentBinary, "/") }

// skeletonDirs are the mount points of a function, sorted. agent asks for the
// agent's as well.
func skeletonDirs(spec runtime.Spec, agent bool) []string {
	dirs := []string{"proc", "dev", "tmp"}
	if agent {
		dirs = append(dirs, strings.TrimPrefix(api.AgentRunDir, "/"))
	}
	for _, t := range withSecrets(spec.Tmpfs) {
		dirs = append(dirs, strings.TrimPrefix(t.Path, "/"))
	}
	if spec.Resources.Scratch > 0 {
		dirs = append(dirs, strings.TrimPrefix(runtime.ScratchPath, "/"))
	}
	for _, m := range spec.Mounts {
		dirs = append(dirs, strings.TrimPrefix(m.Target, "/"))
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// skeletons remembers where skeletons are.
type skeletons struct {
	layerDir string
	known    sync.Map // directory by mount points
}

// get is skeleton, looked up once for each set of mount points.
func (k *skeletons) get(dirs []string) (string, error) {
	key := strings.Join(dirs, "\x00")
	if dir, ok := k.known.Load(key); ok {
		return dir.(string), nil
	}
	dir, err := skeleton(k.layerDir, dirs)
	if err == nil {
		k.known.Store(key, dir)
	}
	return dir, err
}

// skeleton gives the directory for a set of mount points, making it at first
// use. It is made under another name and renamed, so that a crash leaves none
// that is half done.
func skeleton(layerDir string, dirs []string) (string, error) {
	agent := slices.Contains(dirs, strings.TrimPrefix(api.AgentRunDir, "/"))
	sum := sha256.Sum256([]byte(strings.Join(dirs, "\x00")))
	final := filepath.Join(layerDir, "skeletons", hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tmp, err := os.MkdirTemp(filepath.Dir(final), "new-")
	if err != nil {
		return "", fmt.Errorf("make the skeleton layer: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("make the skeleton layer: %w", err)
	}
	for _, d := range dirs {
		if err := mkdirs(tmp, d); err != nil {
			return "", err
		}
	}
	// runc 1.1 gives a tmpfs the mode of the directory it is mounted on.
	for _, d := range dirs {
		mode := fs.FileMode(0o700)
		switch d {
		case "proc", "dev", strings.TrimPrefix(api.AgentRunDir, "/"), strings.TrimPrefix(api.FunctionRoot, "/"):
			mode = 0o755
		case "tmp":
			mode = 0o777 | fs.ModeSticky
		}
		if err := os.Chmod(filepath.Join(tmp, d), mode); err != nil {
			return "", fmt.Errorf("make the skeleton layer: %w", err)
		}
	}
	for name, content := range skeletonFiles(agent) {
		if err := mkdirs(tmp, filepath.Dir(name)); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(tmp, name), []byte(content), 0o644); err != nil {
			return "", fmt.Errorf("make the skeleton layer: %w", err)
		}
	}
	if agent {
		if err := os.Chmod(filepath.Join(tmp, agentFile()), 0o755); err != nil {
			return "", fmt.Errorf("make the skeleton layer: %w", err)
		}
	}
	err = os.Rename(tmp, final)
	if errors.Is(err, fs.ErrExist) { // another Create was faster
		err = nil
	}
	if err != nil {
		return "", fmt.Errorf("make the skeleton layer: %w", err)
	}
	return final, nil
}

// mkdirs makes base/rel with mode 0755, whatever the umask.
func mkdirs(base, rel string) error {
	at := base
	for part := range strings.SplitSeq(filepath.Clean(rel), "/") {
		at = filepath.Join(at, part)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make the skeleton layer: %w", err)
		}
		if err := os.Chmod(at, 0o755); err != nil {
			return fmt.Errorf("make the skeleton layer: %w", err)
		}
	}
	return nil
}

// checkMountPoints refuses a mount point that lies behind a symbolic link of
// the image: the skeleton's directory would hide the link and with it what the
// image keeps there ("/lib/model" where /lib leads to /usr/lib). Only names
// above the mount point matter; the mount point itself is hidden anyway.
func checkMountPoints(dirs, layers []string) error {
	for _, d := range append(slices.Clone(dirs), "etc/hosts", strings.TrimPrefix(api.AgentBinary, "/")) {
		parts := strings.Split(d, "/")
		for i := 1; i < len(parts); i++ {
			above := filepath.Join(parts[:i]...)
			link, err := isLink(layers, above)
			if err != nil {
				return err
			}
			if link {
				return api.Invalid("image", "use another path, or an image in which it is a directory",
					fmt.Sprintf("/%s is needed as a mount point, but /%s is a symbolic link in the image", d, above))
			}
		}
	}
	return nil
}

// isLink looks a name up as the overlay would: the topmost layer that has it
// decides. No link of the image is followed on the way.
func isLink(layers []string, rel string) (bool, error) {
	for _, l := range layers {
		info, err := lstatNoFollow(l, rel)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("look into a layer: %w", err)
		}
		return info.Mode()&fs.ModeSymlink != 0, nil
	}
	return false, nil
}

// lstatNoFollow is Lstat of base/rel where a link or a file on the way counts
// as "does not exist".
func lstatNoFollow(base, rel string) (fs.FileInfo, error) {
	at := base
	parts := strings.Split(rel, "/")
	for i, part := range parts {
		at = filepath.Join(at, part)
		info, err := os.Lstat(at)
		if err != nil || i == len(parts)-1 {
			return info, err
		}
		if !info.IsDir() {
			return nil, fs.ErrNotExist
		}
	}
	return os.Lstat(at)
}
