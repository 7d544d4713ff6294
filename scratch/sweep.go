package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// attachPrefix begins the names of directories that a volume is attached to for
// a moment, on kernels that need it.
const attachPrefix = "attach-"

// sweep removes what a daemon that was killed in that moment left: the only thing
// of a volume that has a name. All else the kernel released with the daemon, or
// will with the sandbox that has it.
func (s *Store) sweep() error {
	left, err := filepath.Glob(filepath.Join(s.cfg.Dir, attachPrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for remains of scratch: %w", err)
	}
	var errs []error
	for _, dir := range left {
		if !strings.HasPrefix(filepath.Base(dir), attachPrefix) {
			continue
		}
		// EINVAL: nothing is mounted there.
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
			continue
		}
		errs = append(errs, os.Remove(dir))
	}
	return errors.Join(errs...)
}
