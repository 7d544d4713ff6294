package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/runtime"
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

// bounded are the options of a tmpfs of size bytes. Its files are bounded too:
// each costs the kernel about a kilobyte that no size limit counts.
func bounded(size int64, mode string) [][2]string {
	return [][2]string{{"size", strconv.FormatInt(size, 10)}, {"nr_inodes", strconv.FormatInt(max(size/4096, 64), 10)}, {"mode", mode}}
}

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

// rootTree composes all that a function will see, mounted nowhere yet. done gets
// every descriptor that is opened for it, the root's included.
func (r *Runtime) rootTree(spec runtime.Spec, layers []string, base uint32, userns *os.File, proc int, done *closers) (root int, err error) {
	root, err = r.compose.composeDetached(layers, userns, done)
	if err != nil {
		return -1, fmt.Errorf("compose the root file system: %w", err)
	}
	done.add(root)
	if err := place(proc, root, "proc"); err != nil {
		return -1, err
	}
	dev, err := unix.OpenTree(r.dev, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("clone /dev: %w", err)
	}
	done.add(dev)
	if err := place(dev, root, "dev"); err != nil {
		return -1, err
	}
	const plain = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	for _, t := range boundTmpfs(spec) {
		attrs := plain
		if !t.Exec {
			attrs |= unix.MOUNT_ATTR_NOEXEC
		}
		options := bounded(t.Bytes, t.mode)
		uid, gid := int(base), int(base)
		if t.owned {
			uid, gid = uid+spec.UID, gid+spec.GID
		}
		options = append(options, [2]string{"uid", strconv.Itoa(uid)}, [2]string{"gid", strconv.Itoa(gid)})
		fd, err := mountTmpfs(attrs, options...)
		if err != nil {
			return -1, fmt.Errorf("%s: %w", t.Path, err)
		}
		done.add(fd)
		if err := place(fd, root, strings.TrimPrefix(t.Path, "/")); err != nil {
			return -1, err
		}
	}
	return root, nil
}

// ownTmpfs is a tmpfs of a bound sandbox.
type ownTmpfs struct {
	runtime.Tmpfs
	mode  string
	owned bool // by the function; else by the sandbox's root
}

// boundTmpfs are the same as mounts gives a sandbox that is created with its
// function, outer ones first.
func boundTmpfs(spec runtime.Spec) []ownTmpfs {
	tmp := spec.Resources.Tmp
	if tmp == 0 {
		tmp = defaultTmp
	}
	all := []ownTmpfs{
		{runtime.Tmpfs{Path: "/dev/shm", Bytes: shmBytes}, "1777", false},
		{runtime.Tmpfs{Path: "/tmp", Bytes: tmp}, "1777", false},
	}
	for _, t := range withSecrets(spec.Tmpfs) {
		t.Path = filepath.Clean(t.Path)
		all = append(all, ownTmpfs{t, "0700", true})
	}
	slices.SortFunc(all, func(a, b ownTmpfs) int { return strings.Compare(a.Path, b.Path) })
	return all
}
