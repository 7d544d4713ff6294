package containerd

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// The writable layer is a tmpfs of its own above the image's layers: its pages
// are charged to the sandbox whose processes write them, and end with it.

// upper is where an overlay keeps what is written.
type upper struct {
	bytes int64
	fs    int // detached mount of the tmpfs
	dir   int // directories in it
	work  int
}

// The directories of the tmpfs. The function sees the first as its root.
const (
	upperName = "u"
	workName  = "w"
)

// newUpper makes a writable layer of exactly that many bytes, in whole pages. Its
// root belongs to the sandbox's and, as that of every sandbox, is not for a
// function to write: what is mounted in it could be moved aside otherwise.
func newUpper(bytes int64, base uint32) (_ *upper, retErr error) {
	fs, err := mountTmpfs(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, bounded(bytes, "0700")...)
	if err != nil {
		return nil, fmt.Errorf("make the writable layer: %w", err)
	}
	u := &upper{bytes: bytes, fs: fs, dir: -1, work: -1}
	defer func() {
		if retErr != nil {
			u.close()
		}
	}()
	for _, d := range []struct {
		name string
		mode uint32
		fd   *int
	}{{upperName, 0o755, &u.dir}, {workName, 0o700, &u.work}} {
		if err := unix.Mkdirat(fs, d.name, d.mode); err != nil {
			return nil, fmt.Errorf("make the writable layer: %w", err)
		}
		if *d.fd, err = unix.Openat(fs, d.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("make the writable layer: %w", err)
		}
	}
	// Whatever the umask.
	if err := errors.Join(unix.Fchmodat(fs, upperName, 0o755, 0), unix.Fchownat(fs, upperName, int(base), int(base), unix.AT_SYMLINK_NOFOLLOW)); err != nil {
		return nil, fmt.Errorf("make the writable layer: %w", err)
	}
	return u, nil
}

// close lets go of what an overlay, if there is one, has for itself now.
func (u *upper) close() {
	for _, fd := range u.fds() {
		_ = unix.Close(fd)
	}
}

func (u *upper) fds() []int {
	if u == nil {
		return nil
	}
	var out []int
	for _, fd := range []int{u.dir, u.work, u.fs} {
		if fd >= 0 {
			out = append(out, fd)
		}
	}
	return out
}

// flags are those of an overlay's mount: without a writable layer, read-only too.
func (u *upper) flags() int {
	if u == nil {
		return layerFlags
	}
	return layerFlags &^ unix.MOUNT_ATTR_RDONLY
}

// check reads back, through the mounted overlay at fd, that its writable layer is
// as large as was asked for and no larger.
func (u *upper) check(fd int) error {
	if u == nil {
		return nil
	}
	fits, err := ownTmpfs{Tmpfs: runtime.Tmpfs{Bytes: u.bytes}}.fits(fd)
	if err != nil {
		return fmt.Errorf("the writable layer: %w", err)
	}
	if !fits {
		return fmt.Errorf("%w: the writable layer has not %d bytes", runtime.ErrLimits, u.bytes)
	}
	return nil
}

// upperOf makes the writable layer that spec asks for, nil where it asks for none.
func (s *Sandbox) upperOf(spec runtime.Spec) (*upper, error) {
	if spec.Resources.Storage == 0 {
		return nil, nil
	}
	return newUpper(spec.Resources.Storage, s.base)
}

// readBackUpper is check for an overlay that is mounted on target.
func (u *upper) readBackUpper(target string) error {
	if u == nil {
		return nil
	}
	f, err := os.Open(target)
	if err != nil {
		return fmt.Errorf("read the writable layer back: %w", err)
	}
	defer f.Close()
	return u.check(int(f.Fd()))
}
