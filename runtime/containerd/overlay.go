package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// composer stacks idmapped layers into one root.
type composer struct {
	// detached says that this kernel's overlay takes layers that are mounted
	// nowhere (Linux 6.15). Where it does not, each layer is mounted below the
	// sandbox's directory until the overlay has its own clone of it.
	detached bool
}

// layerFlags go onto every layer: nothing in an image is a device, nothing
// gains privilege, nothing is written. An overlay with a writable layer of its
// own is not read-only; all else stays.
const layerFlags = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// compose mounts the given directories, topmost first, as one tree on target.
// scratch is an existing directory for mounts that last as long as the call. up is
// the writable layer above them all, nil for a read-only tree.
//
// The overlay's superblock belongs to the initial user namespace, so a device
// node in an image would be a real device inside the sandbox: nodev is what
// prevents that, on the layers and on the overlay.
func (c composer) compose(target, scratch string, layers []string, userns *os.File, up *upper) (retErr error) {
	var fds []int
	var attached []string
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // an O_PATH descriptor: nothing to flush
		}
		for _, a := range attached {
			if err := unix.Unmount(a, unix.MNT_DETACH); err != nil && retErr == nil {
				retErr = fmt.Errorf("unmount layer %s: %w", a, err)
			}
		}
	}()
	for i, dir := range layers {
		fd, err := idmapped(dir, userns)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
		if c.detached {
			continue
		}
		at := filepath.Join(scratch, strconv.Itoa(i))
		if err := os.Mkdir(at, 0o700); err != nil {
			return fmt.Errorf("mount point for a layer: %w", err)
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount layer %s: %w", dir, err)
		}
		attached = append(attached, at)
	}
	if c.detached {
		return overlayByFD(target, fds, up)
	}
	if up != nil {
		at := filepath.Join(scratch, "upper")
		if err := os.Mkdir(at, 0o700); err != nil {
			return fmt.Errorf("mount point for the writable layer: %w", err)
		}
		if err := unix.MoveMount(up.fs, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount the writable layer: %w", err)
		}
		attached = append(attached, at)
	}
	return overlayByPath(target, fds, up)
}

// composeDetached is compose for a tree that is mounted nowhere yet, which the
// caller closes or moves, and whose topmost layer is mapped already. done goes on
// to hold what the tree needs no longer.
func (c composer) composeDetached(top int, layers []string, userns *os.File, up *upper, done *closers, shop *workshop) (root int, err error) {
	fds := append(make([]int, 0, 1+len(layers)), top)
	for _, dir := range layers {
		fd, err := idmapped(dir, userns)
		if err != nil {
			return -1, err
		}
		fds = append(fds, fd)
		done.add(fd)
	}
	if !c.detached {
		return shop.overlay(fds, up)
	}
	return overlay(fds, up)
}

// closers are descriptors to be closed when there is time: closing the last one
// of a mount that is mounted nowhere waits for all processors, each time.
type closers []int

func (c *closers) add(fd int) { *c = append(*c, fd) }

func (c *closers) close() {
	for _, fd := range *c {
		_ = unix.Close(fd)
	}
	*c = nil
}

// idmapped is a detached clone of the mount at dir on which host ids 0..65535
// appear as the ids that userns maps them to.
func idmapped(dir string, userns *os.File) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open layer %s: %w", dir, err)
	}
	attr := &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | layerFlags,
		Userns_fd: uint64(userns.Fd()),
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("idmap layer %s: %w", dir, err)
	}
	return fd, nil
}

// overlayOptions turn off, whatever the kernel's defaults, what extended
// attributes in an image could steer otherwise.
func overlayOptions() [][2]string {
	return [][2]string{{"index", "off"}, {"metacopy", "off"}, {"redirect_dir", "nofollow"}, {"xino", "off"}}
}

// overlay is a detached mount of the layers. They are handed over one
// by one, so that their number is limited by the kernel alone (500).
func overlay(fds []int, up *upper) (root int, err error) {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open overlay: %w", err)
	}
	defer unix.Close(ctx)
	for _, fd := range fds {
		if err := unix.FsconfigSetFd(ctx, "lowerdir+", fd); err != nil {
			return -1, fmt.Errorf("add a layer to the overlay: %w%s", err, complaint(ctx))
		}
	}
	if up != nil {
		if err := errors.Join(unix.FsconfigSetFd(ctx, "upperdir", up.dir), unix.FsconfigSetFd(ctx, "workdir", up.work), unix.FsconfigSetFlag(ctx, "volatile")); err != nil {
			return -1, fmt.Errorf("add the writable layer to the overlay: %w%s", err, complaint(ctx))
		}
	}
	for _, o := range overlayOptions() {
		if err := unix.FsconfigSetString(ctx, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("set overlay option %s: %w%s", o[0], err, complaint(ctx))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("create overlay: %w%s", err, complaint(ctx))
	}
	if root, err = unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, up.flags()); err != nil {
		return -1, fmt.Errorf("mount overlay: %w%s", err, complaint(ctx))
	}
	if err := up.check(root); err != nil {
		_ = unix.Close(root)
		return -1, err
	}
	return root, nil
}

// overlayByFD mounts overlay on target.
func overlayByFD(target string, fds []int, up *upper) error {
	root, err := overlay(fds, up)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("place overlay on %s: %w", target, err)
	}
	return nil
}

// overlayByPath is for kernels before 6.15: layers are named by descriptor.
func overlayByPath(target string, fds []int, up *upper) error {
	paths := make([]string, len(fds))
	for i, fd := range fds {
		paths[i] = procFD(fd)
	}
	dirs := "lowerdir=" + strings.Join(paths, ":")
	if up != nil {
		dirs = "volatile,upperdir=" + procFD(up.dir) + ",workdir=" + procFD(up.work) + "," + dirs
	}
	if err := mountOverlay(target, dirs, len(fds), up); err != nil {
		return err
	}
	return up.readBackUpper(target)
}

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// complaint is what the kernel wrote into the context's message log.
func complaint(ctx int) string {
	var out []string
	buf := make([]byte, 512)
	for {
		n, err := unix.Read(ctx, buf)
		if err != nil || n <= 0 {
			break
		}
		out = append(out, strings.TrimSpace(string(buf[:n])))
	}
	if len(out) == 0 {
		return ""
	}
	return " (kernel: " + strings.Join(out, "; ") + ")"
}
