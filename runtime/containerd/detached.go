package containerd

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// mountTmpfs is a detached tmpfs. uid and gid are the host's.
func mountTmpfs(attrs int, options ...[2]string) (int, error) {
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(ctx)
	for _, o := range options {
		if err := unix.FsconfigSetString(ctx, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("set tmpfs option %s=%s: %w%s", o[0], o[1], err, complaint(ctx))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("create tmpfs: %w%s", err, complaint(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w%s", err, complaint(ctx))
	}
	return fd, nil
}

// bounded are the options of a tmpfs of size bytes.
func bounded(size int64, mode string) [][2]string {
	return append(bounds(size), [2]string{"mode", mode})
}

// bounds are the options that can be changed later. The files of a tmpfs are
// bounded too: each costs the kernel about a kilobyte that no size limit counts.
func bounds(size int64) [][2]string {
	return [][2]string{{"size", strconv.FormatInt(size, 10)}, {"nr_inodes", strconv.FormatInt(inodesOf(size), 10)}}
}

// inodesOf is how many files a tmpfs of size bytes may have.
func inodesOf(size int64) int64 { return max(size/4096, 64) }

// place attaches the detached mount fd to name inside the detached tree root.
// Linux 6.15.
func place(fd, root int, name string) error {
	if err := unix.MoveMount(fd, "", root, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("place a mount on /%s: %w", name, err)
	}
	return nil
}

// devices are the nodes of every sandbox's /dev: those that every program may
// expect and that give nothing away.
func devices() map[string][2]uint32 {
	return map[string][2]uint32{
		"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0},
	}
}

// mountDev makes the /dev that all bound sandboxes have a read-only clone of. It
// is the one mount of a sandbox on which devices work, and nobody can make any
// there.
func mountDev() (fd int, retErr error) {
	fd, err := mountTmpfs(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, bounded(64<<10, "0755")...)
	if err != nil {
		return -1, err
	}
	defer func() {
		if retErr != nil {
			_ = unix.Close(fd)
		}
	}()
	for name, d := range devices() {
		if err := unix.Mknodat(fd, name, unix.S_IFCHR|0o666, int(unix.Mkdev(d[0], d[1]))); err != nil {
			return -1, fmt.Errorf("make /dev/%s: %w", name, err)
		}
		if err := unix.Fchmodat(fd, name, 0o666, 0); err != nil { // whatever the umask
			return -1, fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := unix.Symlinkat(target, fd, name); err != nil {
			return -1, fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	if err := unix.Mkdirat(fd, "shm", 0o755); err != nil {
		return -1, fmt.Errorf("make /dev/shm: %w", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return -1, fmt.Errorf("make /dev read-only: %w", err)
	}
	return fd, nil
}
