package launcher

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// blankNamespaces are what a launcher without a function gets of its own: the
// function's mounts, so that nothing of the agent's is among them, and a process
// table in which there is no agent.
const blankNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC

// blankCapabilities are what a launcher keeps until it has a function: to change
// its root to the function's, and its ids.
const blankCapabilities = 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID

// BlankCapabilities are the capabilities that the agent must have and leave in
// its bounding set while it starts a blank launcher: blankCapabilities, and
// those by which the launcher sets up its namespaces and gives the others up.
func BlankCapabilities() []uintptr {
	return []uintptr{unix.CAP_SYS_CHROOT, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
}

// settle makes the new namespaces the function's: private mounts, a /proc of its
// own process table, and nothing that leads to the node. Then it gives up all
// but blankCapabilities, for good, and those on every thread but this one. The
// calling goroutine must be locked to its thread: threads that begin later come
// from one that has none.
func settle(privateDirs []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// hidepid keeps the launcher out of the function's sight.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=2"); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := maskProc(); err != nil {
		return err
	}
	for _, dir := range privateDirs {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("take %s away: %w", dir, err)
		}
	}
	for c := uintptr(0); c < 64; c++ {
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil || set == 0 || blankCapabilities&(1<<c) != 0 {
			continue
		}
		if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); errno != 0 {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, errno)
		}
	}
	return becomeUsual()
}

// becomeUsual takes the ids that most functions have. A thread that stops being
// root loses its capabilities unless it asked to keep them, which only this one
// does: a start has no time to reach all threads one by one.
func becomeUsual() error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave all groups: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := syscall.Setresgid(api.FunctionID, api.FunctionID, api.FunctionID); err != nil {
		return fmt.Errorf("become group %d: %w", api.FunctionID, err)
	}
	if err := syscall.Setresuid(api.FunctionID, api.FunctionID, api.FunctionID); err != nil {
		return fmt.Errorf("become user %d: %w", api.FunctionID, err)
	}
	if err := keepCapabilities(blankCapabilities); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep no capabilities any more: %w", err)
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // the change of ids may have set it
}

// maskProc hides of /proc what the runtime hides in a sandbox that it creates
// with its function: files with /dev/null and directories with an empty one.
func maskProc() error {
	for _, name := range api.MaskedProc() {
		path := "/proc/" + name
		info, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
		if info.IsDir() {
			err = unix.Mount("tmpfs", path, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=0,nr_inodes=1")
		} else {
			err = unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	for _, name := range api.ReadOnlyProc() {
		path := "/proc/" + name
		if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
		flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
		if err := unix.Mount("", path, "", flags, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	return nil
}

// keepCapabilities makes set all that this thread has.
func keepCapabilities(set uint32) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: set, Permitted: set}}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}

// enter makes the root that the node mounted this process's own, takes the
// function's ids, and gives up what was left to give up. It runs on the thread
// that settle left the means to. Other ids than usual are those of this thread
// alone, which the calling goroutine stays pinned to, to do all that needs them;
// else it is free to leave it.
func enter(root string, uid, gid int) (pinned bool, err error) {
	if uid <= 0 || gid <= 0 {
		return false, fmt.Errorf("enter as %d:%d: a function never runs as root", uid, gid)
	}
	if err := unix.Chroot(root); err != nil {
		return false, fmt.Errorf("enter %s: %w", root, err)
	}
	if err := unix.Chdir("/"); err != nil {
		return false, fmt.Errorf("enter %s: %w", root, err)
	}
	pinned = uid != os.Getuid() || gid != os.Getgid()
	if pinned {
		if err := become(uid, gid); err != nil {
			return false, err
		}
	}
	if err := keepCapabilities(0); err != nil {
		return false, err
	}
	if !pinned {
		runtime.UnlockOSThread()
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return false, fmt.Errorf("not dumpable: %w", err)
	}
	return pinned, nil
}

// become changes the ids of this thread.
func become(uid, gid int) error {
	id := func(n int) uintptr { return uintptr(n) }
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id(gid), id(gid), id(gid)); errno != 0 {
		return fmt.Errorf("become group %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id(uid), id(uid), id(uid)); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	return nil
}
