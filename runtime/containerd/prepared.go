package containerd

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// prepared are the mounts of a function's root that hardly depend on the
// function: made for a blank, and mounted nowhere until it is bound.
type prepared struct {
	skel  int            // id-mapped skeleton with the usual mount points
	proc  int            // clone of the launcher's /proc, with its masks
	dev   int            // clone of the /dev of all, with a /dev/shm of its own
	shm   int            // that /dev/shm, where it is not in dev yet
	tmpfs map[string]int // by path, of the usual sizes
}

func (p *prepared) close() {
	for _, fd := range p.tmpfs {
		_ = unix.Close(fd)
	}
	for _, fd := range []int{p.skel, p.shm, p.dev, p.proc} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// unprepared has nothing to close.
func unprepared() prepared {
	return prepared{skel: -1, proc: -1, dev: -1, shm: -1, tmpfs: make(map[string]int)}
}

// usualPoints are the mount points of a function that asks for none of its own.
func usualPoints() []string { return skeletonDirs(runtime.Spec{}, false) }

// prepare makes all but proc, for s. What it made when it fails is closed with p.
func (p *prepared) prepare(s *Sandbox) error {
	base := s.base
	dir, err := s.r.skels.get(usualPoints())
	if err != nil {
		return err
	}
	if p.skel, err = idmapped(dir, s.userns); err != nil {
		return err
	}
	if p.shm, err = (ownTmpfs{runtime.Tmpfs{Path: "/dev/shm", Bytes: shmBytes}, "1777", false}).mount(base, 0, 0); err != nil {
		return fmt.Errorf("/dev/shm: %w", err)
	}
	if p.dev, err = s.r.cloneDev(); err != nil {
		return err
	}
	if s.r.compose.detached {
		err = place(p.shm, p.dev, "shm")
		_ = unix.Close(p.shm)
		p.shm = -1
		if err != nil {
			return err
		}
	}
	for _, t := range boundTmpfs(runtime.Spec{}) {
		if p.tmpfs[t.Path], err = t.mount(base, 0, 0); err != nil {
			delete(p.tmpfs, t.Path)
			return fmt.Errorf("%s: %w", t.Path, err)
		}
	}
	return nil
}

// owner is whom the root of t belongs to, as the host sees it.
func (t ownTmpfs) owner(base uint32, uid, gid int) (int, int) {
	if !t.owned {
		return int(base), int(base)
	}
	return int(base) + uid, int(base) + gid
}

// mount makes t, detached, for a function with these ids.
func (t ownTmpfs) mount(base uint32, uid, gid int) (int, error) {
	attrs := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if !t.Exec {
		attrs |= unix.MOUNT_ATTR_NOEXEC
	}
	uid, gid = t.owner(base, uid, gid)
	options := append(bounded(t.Bytes, t.mode), [2]string{"uid", strconv.Itoa(uid)}, [2]string{"gid", strconv.Itoa(gid)})
	return mountTmpfs(attrs, options...)
}

// adapt makes an empty tmpfs of a blank what mount would have made, but for the
// mount's flags.
func (t ownTmpfs) adapt(fd int, base uint32, uid, gid int) error {
	if t.owned {
		uid, gid = t.owner(base, uid, gid)
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("give it to the function: %w", err)
		}
	}
	fits, err := t.fits(fd)
	if err != nil || fits {
		return err
	}
	ctx, err := unix.Fspick(fd, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("resize it: %w", err)
	}
	defer unix.Close(ctx)
	for _, o := range bounds(t.Bytes) {
		if err := unix.FsconfigSetString(ctx, o[0], o[1]); err != nil {
			return fmt.Errorf("resize it: option %s=%s: %w%s", o[0], o[1], err, complaint(ctx))
		}
	}
	if err := unix.FsconfigReconfigure(ctx); err != nil {
		return fmt.Errorf("resize it: %w%s", err, complaint(ctx))
	}
	if fits, err = t.fits(fd); err == nil && !fits {
		err = fmt.Errorf("%w: its size is not %d bytes", runtime.ErrLimits, t.Bytes)
	}
	return err
}

// fits reads back whether a tmpfs is bounded as t is to be.
func (t ownTmpfs) fits(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, fmt.Errorf("read its size: %w", err)
	}
	page := int64(os.Getpagesize())
	return int64(st.Blocks) == (t.Bytes+page-1)/page && int64(st.Files) == inodesOf(t.Bytes), nil
}
