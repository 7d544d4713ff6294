package scratch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Volume is disk space for one sandbox. It is not safe for concurrent use.
type Volume struct {
	store  *Store
	bytes  int64
	device loop     // its dev is closed
	tree   *os.File // detached mount of the encrypted directory
	dir    *os.File // the directory, for the kernel's calls
	key    keyID
}

// Create makes a volume of bytes, less what a block of 4096 bytes is not filled
// by. ctx bounds it, with Config.Timeout. After an error nothing remains.
func (s *Store) Create(ctx context.Context, bytes int64) (*Volume, error) {
	bytes -= bytes % blockSize
	if bytes < MinBytes || bytes > MaxBytes {
		return nil, fmt.Errorf("scratch of %d bytes: give %d to %d", bytes, int64(MinBytes), int64(MaxBytes))
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	f, err := s.reserve(bytes)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the loop device has it
	v, err := s.build(ctx, f, bytes)
	if err != nil {
		return nil, fmt.Errorf("make scratch of %d bytes: %w", bytes, err)
	}
	return v, nil
}

// build makes a volume in a reserved file. What it made when it fails goes with
// its descriptors.
func (s *Store) build(ctx context.Context, f *os.File, bytes int64) (*Volume, error) {
	if err := s.format(ctx, f); err != nil {
		return nil, err
	}
	l, err := attach(ctx, f, bytes)
	if err != nil {
		return nil, err
	}
	defer l.dev.Close() // the mount has it
	fd, err := mountVolume(l.path())
	if err != nil {
		return nil, err
	}
	root := os.NewFile(uintptr(fd), "volume")
	defer root.Close()
	if err := checkSize(fd, l, bytes); err != nil {
		return nil, err
	}
	v := &Volume{store: s, bytes: bytes, device: l}
	if err := errors.Join(v.secure(root), ctx.Err()); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

// dataDir is the encrypted directory, which a sandbox sees as its whole scratch:
// the root of an ext4 cannot be encrypted itself.
const dataDir = "data"

// secure makes the encrypted directory and a mount of it alone.
func (v *Volume) secure(root *os.File) error {
	if err := unix.Mkdirat(int(root.Fd()), dataDir, 0o700); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	fd, err := unix.Openat(int(root.Fd()), dataDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the directory: %w", err)
	}
	v.dir = os.NewFile(uintptr(fd), dataDir)
	if v.key, err = addKey(v.dir); err != nil {
		return err
	}
	if err := encrypt(v.dir, v.key); err != nil {
		return err
	}
	v.tree, err = v.store.subtree(root)
	return err
}

// subtree is a detached mount of the encrypted directory.
func (s *Store) subtree(root *os.File) (*os.File, error) {
	open := func(fd int, path string) (*os.File, error) {
		t, err := unix.OpenTree(fd, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return nil, fmt.Errorf("mount the directory alone: %w", err)
		}
		return os.NewFile(uintptr(t), "tree"), nil
	}
	tree, err := open(int(root.Fd()), dataDir)
	if !errors.Is(err, unix.EINVAL) {
		return tree, err
	}
	// Before Linux 6.15 a part of a mount can be had only where it is attached.
	at, err := os.MkdirTemp(s.cfg.Dir, attachPrefix)
	if err != nil {
		return nil, fmt.Errorf("mount the directory alone: %w", err)
	}
	defer os.Remove(at)
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("mount the directory alone: %w", err)
	}
	tree, err = open(unix.AT_FDCWD, at+"/"+dataDir)
	if uerr := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); uerr != nil {
		err = errors.Join(err, fmt.Errorf("unmount %s: %w", at, uerr))
	}
	return tree, err
}

// Tree is a mount of the volume that is attached nowhere: an empty directory,
// nosuid, nodev and noexec, for one sandbox to have. It stays the volume's.
func (v *Volume) Tree() *os.File { return v.tree }

// Bytes is what was reserved.
func (v *Volume) Bytes() int64 { return v.bytes }

// Device is the volume's block device.
func (v *Volume) Device() string { return v.device.path() }

// Used is how many bytes of the volume are in use, its file system's own left out.
func (v *Volume) Used() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(v.dir.Fd()), &st); err != nil {
		return 0, fmt.Errorf("scratch in use: %w", err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

// Remove drops the key, throws away what was not yet written and lets the volume
// go. Its sandbox must have ended. When it returns nil, device and file are gone.
// It can be tried again.
func (v *Volume) Remove(ctx context.Context) error {
	var errs []error
	if v.dir != nil {
		// Nobody reads it again: what is in memory only need not get to the disk.
		flags := uint32(shutdownNoFlush)
		if err := ioctl(v.dir, ioctlShutdown, unsafe.Pointer(&flags)); err != nil {
			errs = append(errs, fmt.Errorf("shut the volume down: %w", err))
		}
		// The kernel wipes the secret first and then complains that it cannot write
		// to what was shut down.
		if err := dropKey(v.dir, v.key); err != nil && !errors.Is(err, unix.EIO) {
			errs = append(errs, err)
		}
		if has, err := keyPresent(v.dir, v.key); err != nil || has {
			errs = append(errs, fmt.Errorf("the kernel still has the key: %v: %w", has, err))
		}
	}
	v.close()
	errs = append(errs, v.wait(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove scratch on %s: %w", v.device.path(), err)
	}
	return nil
}

// From Linux's include/uapi/linux/fs.h and fs/ext4/ext4.h.
const (
	ioctlShutdown   = 0x8004587d // _IOR('X', 125, __u32)
	shutdownNoFlush = 2
)

// Close gives the volume to the sandbox that has its tree: it ends with that, key
// and all, and Remove is not to be called.
func (v *Volume) Close() error {
	v.close()
	return nil
}

func (v *Volume) close() {
	for _, f := range []*os.File{v.tree, v.dir} {
		if f != nil {
			_ = f.Close() // a directory: nothing to flush
		}
	}
	v.tree, v.dir = nil, nil
}

// wait returns when the kernel has released the device. Who held the last mount,
// a namespace that is being taken down perhaps, decides when.
func (v *Volume) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, v.store.cfg.Timeout)
	defer cancel()
	for {
		use, err := useOf(v.device.number)
		if err != nil || use != v.device.use {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is still in use: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}
