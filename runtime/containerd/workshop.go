package containerd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// workshop is where trees are composed on kernels before Linux 6.15, which take
// layers for an overlay, and clone mounts, only where they are mounted. It is a
// mount namespace of one thread, with an empty tmpfs for its root and nothing of
// the host's: what is mounted in it nobody sees, and all of it ends with the
// process, however that ends.
type workshop struct {
	thread *attacher
	points int // directories made in benchDir for layers
}

// The directories of the workshop's root.
const (
	benchDir = "bench" // mount points for layers, by number; cloned for each tree
	treeDir  = "tree"  // where that clone is mounted while a tree is made
	devDir   = "dev"   // the /dev that is cloned for each tree

	upperPoint = "u" // within treeDir: the writable layer's tmpfs
	rootPoint  = "r" // within treeDir: the overlay
)

// newWorkshop makes one. dir is any directory; nothing is left on it.
func newWorkshop(dir string) (*workshop, error) {
	thread, err := newAttacher(unix.CLONE_FS|unix.CLONE_NEWNS, func() error { return emptyRoot(dir) })
	if err != nil {
		return nil, fmt.Errorf("make a mount namespace to compose in: %w", err)
	}
	return &workshop{thread: thread}, nil
}

func (w *workshop) close() {
	if w != nil {
		w.thread.close()
	}
}

// emptyRoot makes a new tmpfs the root of the calling thread, whose mount
// namespace is its own, and lets go of everything else that is mounted there:
// kept, it would keep disks busy that the host has unmounted.
func emptyRoot(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to itself: %w", err)
	}
	root, err := mountTmpfs(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, bounded(1<<20, "0700")...)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount a root on %s: %w", dir, err)
	}
	// pivot_root(2): the old root comes to lie on the new one, and is taken away.
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's mounts: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	for _, d := range []string{benchDir, treeDir, devDir, benchDir + "/" + upperPoint, benchDir + "/" + rootPoint} {
		if err := unix.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("make /%s: %w", d, err)
		}
	}
	return nil
}

// keepDev mounts the /dev that cloneDev clones.
func (w *workshop) keepDev(dev int) error {
	return w.thread.here(func() error {
		if err := unix.MoveMount(dev, "", unix.AT_FDCWD, devDir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("keep /dev: %w", err)
		}
		return nil
	})
}

// cloneDev is a detached clone of the /dev of all.
func (w *workshop) cloneDev() (fd int, err error) {
	err = w.thread.here(func() error { fd, err = cloneMount(devDir); return err })
	return fd, err
}

func cloneMount(path string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone /%s: %w", path, err)
	}
	return fd, nil
}

// overlay is what the function of that name makes, a detached mount of the
// layers, topmost first. They can be used this once.
func (w *workshop) overlay(fds []int, up *upper) (root int, err error) {
	err = w.thread.here(func() error { root, err = w.assemble(fds, up); return err })
	return root, err
}

// assemble runs on the workshop's thread.
func (w *workshop) assemble(fds []int, up *upper) (root int, retErr error) {
	for ; w.points < len(fds); w.points++ {
		if err := unix.Mkdir(benchDir+"/"+pointName(w.points), 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, fmt.Errorf("mount point for a layer: %w", err)
		}
	}
	bench, err := cloneMount(benchDir)
	if err != nil {
		return -1, err
	}
	defer unix.Close(bench)
	if err := unix.MoveMount(bench, "", unix.AT_FDCWD, treeDir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, fmt.Errorf("mount the bench: %w", err)
	}
	defer func() {
		// With all that is mounted in it; the overlay has clones of its own.
		if err := unix.Unmount(treeDir, unix.MNT_DETACH); err != nil && retErr == nil {
			_ = unix.Close(root)
			root, retErr = -1, fmt.Errorf("clear the bench: %w", err)
		}
	}()
	attach := func(fd int, name string) error {
		if err := unix.MoveMount(fd, "", bench, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount a layer: %w", err)
		}
		return nil
	}
	lower := make([]string, len(fds))
	for i, fd := range fds {
		if err := attach(fd, pointName(i)); err != nil {
			return -1, err
		}
		lower[i] = treeDir + "/" + pointName(i)
	}
	dirs := "lowerdir=" + strings.Join(lower, ":")
	if up != nil {
		if err := attach(up.fs, upperPoint); err != nil {
			return -1, err
		}
		at := treeDir + "/" + upperPoint + "/"
		dirs = "volatile,upperdir=" + at + upperName + ",workdir=" + at + workName + "," + dirs
	}
	if err := mountOverlay(treeDir+"/"+rootPoint, dirs, len(fds), up); err != nil {
		return -1, err
	}
	if root, err = cloneMount(treeDir + "/" + rootPoint); err != nil {
		return -1, err
	}
	if err := up.check(root); err != nil {
		_ = unix.Close(root)
		return -1, err
	}
	return root, nil
}

// pointName is short, since all of them share a page with the other options.
func pointName(i int) string { return strconv.FormatInt(int64(i), 36) + "_" }

// mountOverlay mounts an overlay of layers by their paths, which mount(2) takes in
// one page of options.
func mountOverlay(target, dirs string, layers int, up *upper) error {
	var opts string
	for _, o := range overlayOptions() {
		opts += o[0] + "=" + o[1] + ","
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if up == nil {
		flags |= unix.MS_RDONLY
	}
	if opts += dirs; len(opts) >= os.Getpagesize() {
		return fmt.Errorf("an image of %d layers needs Linux 6.15: squash it to fewer than 200", layers)
	}
	if err := unix.Mount("overlay", target, "overlay", flags, opts); err != nil {
		return fmt.Errorf("mount overlay on %s: %w", target, err)
	}
	return nil
}
