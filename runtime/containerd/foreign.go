package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// foreignFlags go onto every mount that the node gives a sandbox.
const foreignFlags = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// checkMounts keeps mounts off the paths that isolate a sandbox, and off each
// other.
func checkMounts(s runtime.Spec) error {
	if len(s.Mounts) == 0 {
		return nil
	}
	paths := make([]string, 0, len(s.Mounts)+len(s.Tmpfs))
	for _, t := range withSecrets(s.Tmpfs) {
		paths = append(paths, t.Path)
	}
	for _, m := range s.Mounts {
		if err := checkTarget("mounts", m.Target); err != nil {
			return err
		}
		if m.Tree == nil {
			return api.Invalid("mounts", "give the mount itself", m.Target+" has none")
		}
		for _, p := range paths {
			if p == m.Target || strings.HasPrefix(p, m.Target+"/") || strings.HasPrefix(m.Target, p+"/") {
				return api.Invalid("mounts", "use another path", fmt.Sprintf("%s and %s are in each other's way", m.Target, p))
			}
		}
		paths = append(paths, m.Target)
	}
	return nil
}

// own makes a mount the function's: its root directory belongs to it, its ids
// are the sandbox's, and nothing in it is a program, a device or gains privilege.
// The caller closes what it gets.
func (s *Sandbox) own(m runtime.Mount, uid, gid int) (int, error) {
	fail := func(what string, err error) (int, error) {
		return -1, fmt.Errorf("mount for %s: %s: %w", m.Target, what, err)
	}
	tree := int(m.Tree.Fd())
	// What is within a mount of the host's is the host's.
	var sx unix.Statx_t
	if err := unix.Statx(tree, "", unix.AT_EMPTY_PATH, 0, &sx); err != nil {
		return fail("look at it", err)
	}
	if sx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return fail("look at it", errors.New("it is a directory, not a mount"))
	}
	fd, err := unix.OpenTree(tree, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.15: it can be used once
		fd, err = unix.FcntlInt(uintptr(tree), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return fail("clone it", err)
	}
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		_ = unix.Close(fd)
		return fail("give it to the function", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP | foreignFlags, Userns_fd: uint64(s.userns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		_ = unix.Close(fd)
		return fail("map its ids", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		_ = unix.Close(fd)
		return fail("read its flags back", err)
	}
	if want := int64(unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC); st.Flags&want != want {
		_ = unix.Close(fd)
		return fail("read its flags back", fmt.Errorf("%#x", st.Flags))
	}
	return fd, nil
}

// attachMounts puts spec's mounts into a root that is mounted at dir.
func (s *Sandbox) attachMounts(spec runtime.Spec, dir string) error {
	if len(spec.Mounts) == 0 {
		return nil
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the root: %w", err)
	}
	defer unix.Close(root)
	for _, m := range spec.Mounts {
		if err := s.attachMount(m, spec, root); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sandbox) attachMount(m runtime.Mount, spec runtime.Spec, root int) error {
	fd, err := s.own(m, spec.UID, spec.GID)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return mountBeneath(fd, root, strings.TrimPrefix(m.Target, "/"))
}

var _ runtime.Mounter = (*Sandbox)(nil)

// Mount implements runtime.Mounter.
func (s *Sandbox) Mount(ctx context.Context, m runtime.Mount) error {
	fail := func(err error) error { return s.goneOr(fmt.Errorf("mount on %s: %w", m.Target, err)) }
	if err := checkMounts(runtime.Spec{Mounts: []runtime.Mount{m}}); err != nil {
		return err
	}
	s.mu.Lock()
	info, pid, limits := s.info, s.info.PID, s.limits
	path := m.Target
	if info.Start == api.StartPooled { // the function's root is within its launcher's
		pid, path = s.parent, filepath.Join(api.FunctionRoot, m.Target)
	}
	s.mu.Unlock()
	if info.Blank || pid == 0 || s.userns == nil {
		return fail(errors.New("the sandbox has no function yet, or had it before this daemon was started"))
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	if err != nil {
		return fail(err)
	}
	defer ns.Close()
	// What was opened by number was the sandbox's.
	if in, err := s.group.Contains(cgroups.Memory, pid); err != nil || !in {
		return fail(errors.Join(err, fmt.Errorf("process %d is not of the sandbox any more: %w", pid, unix.ESRCH)))
	}
	fd, err := s.own(m, info.UID, info.GID)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	err = s.r.attach.in(ns, func() error {
		// Nothing foreign has run in there, but what the image has is foreign too.
		at, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			return err
		}
		defer unix.Close(at)
		return unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
	if err != nil {
		return fail(err)
	}
	if len(limits.IO) == 0 {
		return ctx.Err()
	}
	io, err := deviceLimit(m, info.Resources)
	if err != nil {
		return fail(err)
	}
	only := cgroups.Limits{IO: []cgroups.IOLimit{io}}
	if err := errors.Join(s.group.Apply(only), s.group.Verify(only)); err != nil {
		return fmt.Errorf("sandbox %s: %w: %w", s.info.ID, runtime.ErrLimits, err)
	}
	return ctx.Err()
}

// limitsOf are the limits that spec asks for. Those of I/O are for the machine's
// disk and for the device of each mount, whichever traffic passes.
func (r *Runtime) limitsOf(spec runtime.Spec) (cgroups.Limits, error) {
	l, err := cgroups.For(spec.Resources, r.device)
	if err != nil || len(l.IO) == 0 {
		return l, err
	}
	for _, m := range spec.Mounts {
		io, err := deviceLimit(m, spec.Resources)
		if err != nil {
			return l, err
		}
		l.IO = append(l.IO, io)
	}
	return l, nil
}

// deviceLimit is the limit for a mount's own device.
func deviceLimit(m runtime.Mount, r api.Resources) (cgroups.IOLimit, error) {
	d, err := cgroups.DeviceOf(procFD(int(m.Tree.Fd())))
	if err != nil {
		return cgroups.IOLimit{}, fmt.Errorf("limit the I/O of the mount for %s: %w", m.Target, err)
	}
	return cgroups.IOLimit{Device: d, ReadBps: r.ReadBps, WriteBps: r.WriteBps}, nil
}

// checkTarget demands a mount point that covers nothing of what isolates.
func checkTarget(field, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsAny(path, "\x00\n") {
		return api.Invalid(field, "give a clean absolute path below /", fmt.Sprintf("%q", path))
	}
	for _, own := range []string{"/proc", "/dev", "/sys", "/tmp", "/etc", api.AgentRunDir, filepath.Dir(api.AgentBinary)} {
		if path == own || strings.HasPrefix(path, own+"/") || strings.HasPrefix(own, path+"/") {
			return api.Invalid(field, "use another path", fmt.Sprintf("%s would cover %s, which is the sandbox's own", path, own))
		}
	}
	return nil
}
