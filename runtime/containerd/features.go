package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// probe tries on two small directories what every Create will do, and finds
// the best way this kernel has for it.
func probe(layerDir string, ranges *idRanges) (composer, error) {
	rng, err := ranges.lend()
	if err != nil {
		return composer{}, fmt.Errorf("%w: user namespaces (enable CONFIG_USER_NS and raise user.max_user_namespaces): %w", runtime.ErrUnsupported, err)
	}
	defer ranges.giveBack(rng.base)
	dir, err := os.MkdirTemp(layerDir, "probe-")
	if err != nil {
		return composer{}, fmt.Errorf("probe kernel features: %w", err)
	}
	defer os.RemoveAll(dir)
	layers := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	target := filepath.Join(dir, "t")
	for _, d := range append(layers, target) {
		if err := os.Mkdir(d, 0o755); err != nil {
			return composer{}, fmt.Errorf("probe kernel features: %w", err)
		}
	}
	fd, err := idmapped(layers[0], rng.userns)
	if err != nil {
		return composer{}, fmt.Errorf("%w: idmapped mounts on the file system of %s (Linux 5.12 for ext4, 6.3 for tmpfs): %w", runtime.ErrUnsupported, layerDir, err)
	}
	_ = unix.Close(fd)
	var errs []error
	for _, c := range []composer{{detached: true}, {detached: false}} {
		err := tryCompose(c, dir, target, layers, rng)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return composer{}, fmt.Errorf("%w: overlay over idmapped layers (Linux 5.19, CONFIG_OVERLAY_FS): %w", runtime.ErrUnsupported, errors.Join(errs...))
}

// Features looks again, without making anything, whether the kernel still has
// what probe found when the runtime was made. An administrator may have taken it
// away since.
func (r *Runtime) Features() error {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return fmt.Errorf("%w: user namespaces: %w", runtime.ErrUnsupported, err)
	}
	if most, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || most <= 0 {
		return fmt.Errorf("%w: user namespaces: user.max_user_namespaces is %q", runtime.ErrUnsupported, strings.TrimSpace(string(b)))
	}
	if b, err = os.ReadFile("/proc/filesystems"); err != nil {
		return fmt.Errorf("%w: file systems: %w", runtime.ErrUnsupported, err)
	}
	if !bytes.Contains(b, []byte("\toverlay\n")) {
		return fmt.Errorf("%w: overlay (CONFIG_OVERLAY_FS): the kernel has it no more", runtime.ErrUnsupported)
	}
	return nil
}

func tryCompose(c composer, scratch, target string, layers []string, rng idRange) (retErr error) {
	if err := c.compose(target, scratch, layers, rng.userns, nil); err != nil {
		return err
	}
	defer func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("unmount the probe: %w", err))
		}
	}()
	info, err := os.Stat(target)
	if err != nil {
		return fmt.Errorf("stat the probe: %w", err)
	}
	// A kernel that takes the request and ignores the mapping would show every
	// file as nobody's.
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != rng.base {
		return fmt.Errorf("the root of an idmapped overlay belongs to %d, not %d", st.Uid, rng.base)
	}
	return nil
}

// passable checks that an unprivileged user of the host, which is what a
// sandbox's root is, can walk down to path.
func passable(what, path string) error {
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("%s: %s has mode %04o, which keeps a sandbox from reaching %s: chmod o+x %s", what, dir, info.Mode().Perm(), path, dir)
		}
		if dir == "/" {
			return nil
		}
	}
}
