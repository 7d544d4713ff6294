package monitor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// writable lists the mount points of a process's own file systems that it can
// write to and that hold what a function stores. Part of a file system of the
// host's, mounted there, is none of its own: its root is not "/".
func writable(proc string, pid int, skip []string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		// ID parent major:minor root point options [tag…] - type source super, proc_pid_mountinfo(5)
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 3 || f[3] != "/" || strings.Contains(f[4], `\`) {
			continue
		}
		stores := slices.Contains([]string{"tmpfs", "overlay", "ext4", "xfs", "btrfs"}, g[0])
		rw := func(options string) bool { return slices.Contains(strings.Split(options, ","), "rw") }
		if !stores || !rw(f[5]) || !rw(g[2]) || f[4] == "/dev" || strings.HasPrefix(f[4], "/dev/") || strings.HasPrefix(f[4], "/proc") || strings.HasPrefix(f[4], "/sys") || slices.Contains(skip, f[4]) {
			continue
		}
		if len(out) == maxPlaces {
			break
		}
		out = append(out, f[4])
	}
	return out, nil
}

// maxPlaces bounds the file systems of one task that are looked at.
const maxPlaces = 8

// room adds up use and size of the file systems at points in a process's mount
// namespace, and says whether one of them is full. Nothing is kept open: it would
// keep the file system alive. Links are not followed, as the task made them and
// they could lead out.
func room(proc string, pid int, points []string) (used, size int64, full bool, err error) {
	root, err := unix.Open(filepath.Join(proc, strconv.Itoa(pid), "root"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, false, fmt.Errorf("open the root of a task: %w", err)
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	for _, p := range points {
		fd, err := unix.Openat2(root, p, &how)
		if err != nil {
			continue // hidden below another mount, or gone
		}
		var st unix.Statfs_t
		err = unix.Fstatfs(fd, &st)
		_ = unix.Close(fd)
		if err != nil || st.Blocks == 0 {
			continue
		}
		used += int64(st.Blocks-st.Bfree) * st.Bsize
		size += int64(st.Blocks) * st.Bsize
		full = full || st.Bavail == 0
	}
	return used, size, full, nil
}
