package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// guardFlags are those of the mount through which the host reaches a socket
// directory. The sandbox owns the directory, so an agent that was taken over
// could put a symbolic link where the node expects a socket, and have the
// node, which is root, connect to or change the mode of any file of the host.
// On this mount no link is followed, whoever asks.
const guardFlags = unix.MOUNT_ATTR_NOSYMFOLLOW | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// guardSocketDir mounts dir on itself with guardFlags. It is unmounted by
// removeSocketDir or releaseSocketDir.
func guardSocketDir(dir string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("guard the socket directory: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: guardFlags}); err != nil {
		return fmt.Errorf("guard the socket directory: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("guard the socket directory: %w", err)
	}
	return nil
}

// removeSocketDir takes the guard off and deletes the directory. An empty path
// is that of a sandbox whose directory is not known.
func removeSocketDir(dir string) error {
	if dir == "" {
		return nil
	}
	if err := unmountAll(dir); err != nil {
		return err
	}
	return removeDir(dir)
}

// ownSocketDir gives the directory, and the sockets that wait in it, to the
// sandbox's root, closes it to everybody else and guards it. release takes all
// of that back.
func ownSocketDir(dir string, owner uint32) (release func() error, retErr error) {
	if err := passable("socket directory", filepath.Dir(dir)); err != nil {
		return nil, err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return nil, api.Invalid("socket_dir", "make the directory first", dir+" is not a directory")
	}
	release = func() error {
		if err := unmountAll(dir); err != nil {
			return err
		}
		if err := os.Lchown(dir, int(st.Uid), int(st.Gid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("socket directory: %w", err)
		}
		return nil
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, release())
		}
	}()
	if err := guardSocketDir(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	// A socket keeps the owner who made it, and connecting takes the right to
	// write to it. Only sockets: nothing else in there is the sandbox's.
	for _, e := range entries {
		if e.Type() != fs.ModeSocket {
			continue
		}
		if err := os.Lchown(filepath.Join(dir, e.Name()), int(owner), int(owner)); err != nil {
			return nil, fmt.Errorf("socket directory: %w", err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	if err := os.Lchown(dir, int(owner), int(owner)); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	return release, nil
}
