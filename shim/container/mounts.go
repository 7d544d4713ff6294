package container

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/shim/stage"
)

// mount is one mount of the specification, understood.
type mount struct {
	at     string
	kind   string // "proc", "tmpfs" or "bind"
	source string
	flags  uintptr // unix.MS_*, for proc and tmpfs
	attrs  uint64  // unix.MOUNT_ATTR_*, for bind
	all    bool    // bind: mounts below the source as well
	data   string  // options of the file system
}

// flagOf are the mount options that are flags, as one of mount(2) and as one
// of mount_setattr(2).
var noFlag = [2]uint64{}

func flagOf(option string) (flags [2]uint64, ok bool) {
	switch option {
	case "nosuid":
		return [2]uint64{unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID}, true
	case "nodev":
		return [2]uint64{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, true
	case "noexec":
		return [2]uint64{unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC}, true
	case "ro":
		return [2]uint64{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, true
	case "rw", "relatime", "private", "rprivate":
		return noFlag, true // what a mount in a new namespace of ours is anyway
	}
	return noFlag, false
}

// dataKeys are the options of each file system that are served.
func dataKeys(kind string) []string {
	switch kind {
	case "proc":
		return []string{"hidepid", "gid", "subset"}
	case "tmpfs":
		return []string{"size", "nr_inodes", "mode", "uid", "gid"}
	}
	return nil
}

func mountsOf(list []specs.Mount) ([]mount, error) {
	var out []mount
	var errs []error
	for i, m := range list {
		one, err := mountOf(m)
		if err != nil {
			errs = append(errs, fmt.Errorf("mounts[%d] (%s): %w", i, m.Destination, err))
		}
		out = append(out, one)
	}
	if !slices.ContainsFunc(out, func(m mount) bool { return m.kind == "proc" && m.at == "/proc" }) {
		errs = append(errs, errors.New("mounts: /proc is missing"))
	}
	if !slices.ContainsFunc(out, func(m mount) bool { return m.kind == "tmpfs" && m.at == "/dev" }) {
		errs = append(errs, errors.New("mounts: a tmpfs on /dev is missing"))
	}
	return out, errors.Join(errs...)
}

func mountOf(m specs.Mount) (mount, error) {
	out := mount{at: m.Destination, kind: m.Type, source: m.Source}
	switch {
	case !cleanPath(m.Destination):
		return out, refused("destination", "clean absolute paths below the root")
	case len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0:
		return out, refused("uidMappings and gidMappings", "mounts without a mapping of their own")
	case hasNUL(m.Source):
		return out, refused("source", "texts without NUL")
	}
	var data []string
	for _, o := range m.Options {
		key, _, _ := strings.Cut(o, "=")
		flags, isFlag := flagOf(o)
		switch {
		case isFlag:
			out.flags |= uintptr(flags[0])
			out.attrs |= flags[1]
		case o == "strictatime" && m.Type != "bind":
			out.flags |= unix.MS_STRICTATIME
		case (o == "bind" || o == "rbind") && m.Type == "bind":
			out.all = out.all || o == "rbind"
		case slices.Contains(dataKeys(m.Type), key) && key != o && !strings.ContainsAny(o, ",\x00"):
			data = append(data, o)
		default:
			return out, fmt.Errorf("options: %q is not implemented for %s", o, m.Type)
		}
	}
	out.data = strings.Join(data, ",")
	switch m.Type {
	case "proc", "tmpfs":
		if slices.Contains(m.Options, "ro") {
			return out, fmt.Errorf("options: a read-only %s is not implemented", m.Type)
		}
		return out, nil
	case "bind":
		if !filepath.IsAbs(m.Source) {
			return out, refused("source", "absolute paths")
		}
		return out, nil
	}
	return out, fmt.Errorf("type %q is not implemented", m.Type)
}

// devices are the nodes of /dev, which are those of the host: a user namespace
// can make none of its own.
func devices() []string { return []string{"null", "random", "full", "tty", "zero", "urandom"} }

// tree opens a detached copy of the mount at path, still seen from the host's
// root, and keeps it in r.
func tree(p *stage.Program, what, path string, r stage.Register) {
	flags := uint32(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	p.Call(what, unix.SYS_OPEN_TREE, stage.Num(unix.AT_FDCWD), p.Text(path), stage.Num(flags)).Into(r)
}

// attach puts the detached mount tree at path. A symbolic link at path itself
// is not followed; one on the way cannot lead out of the root, which is the
// container's already.
func attach(p *stage.Program, what, path string, tree stage.Arg) {
	p.Call(what, unix.SYS_MOVE_MOUNT, tree, p.Text(""), stage.Num(unix.AT_FDCWD), p.Text(path), stage.Num(unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// mountAttr is struct mount_attr: the attributes to set, and 24 bytes of 0.
func mountAttr(p *stage.Program, set uint64) stage.Arg {
	return p.Words(uint32(set), uint32(set>>32), 0, 0, 0, 0, 0, 0)
}

const mountAttrSize = 32

// readOnly makes the mount at path read-only, leaving its other attributes.
func readOnly(p *stage.Program, what, path string) *stage.Step {
	return p.Call(what, unix.SYS_MOUNT_SETATTR, stage.Num(unix.AT_FDCWD), p.Text(path), stage.Num(0), mountAttr(p, unix.MOUNT_ATTR_RDONLY), stage.Num(mountAttrSize))
}

func plainMount(p *stage.Program, what, source, target, kind string, flags uintptr, data string) *stage.Step {
	return p.Call(what, unix.SYS_MOUNT, p.Text(source), p.Text(target), p.Text(kind), stage.Num(flags), p.Text(data))
}

// enterRoot makes the container's root the root of the process, with all of
// its mounts. Whatever a path in the image leads to, it is resolved when that
// root is the only one that absolute paths and ".." can reach.
func enterRoot(p *stage.Program, s *specs.Spec, mounts []mount, sources sources) error {
	// The first registers hold the trees, which come from the host's paths.
	next := stage.Register(0)
	trees := make(map[string]stage.Register)
	for _, name := range devices() {
		trees["/dev/"+name] = next
		tree(p, "open /dev/"+name, "/dev/"+name, next)
		next++
	}
	plainMount(p, "make mounts private", "", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	// The copy of a mount from another user namespace is locked to its place;
	// one made here is not.
	plainMount(p, "mount the root", s.Root.Path, s.Root.Path, "", unix.MS_BIND|unix.MS_REC, "")
	p.Call("enter the root", unix.SYS_CHDIR, p.Text(s.Root.Path))
	dot := p.Text(".")
	p.Call("pivot to the root", unix.SYS_PIVOT_ROOT, dot, dot)
	// The host's root now lies over ours, where only the working directory
	// leads, until it is taken away. It has to stay for a while: the kernel
	// mounts a new proc only beside one that is already visible.
	p.Call("clear the umask", unix.SYS_UMASK, stage.Num(0))
	for _, m := range mounts {
		makeMount(p, m, sources)
		if m.at == "/dev" {
			for _, name := range devices() {
				makeDevice(p, "/dev/"+name, trees["/dev/"+name])
			}
		}
	}
	p.Call("leave the host's root", unix.SYS_UMOUNT2, dot, stage.Num(unix.MNT_DETACH))
	p.Call("enter the working directory", unix.SYS_CHDIR, p.Text(s.Process.Cwd))
	return nil
}

func makeMount(p *stage.Program, m mount, sources sources) {
	what := "mount " + m.at
	if m.kind == "bind" {
		attach(p, what, m.at, stage.Num(sources[m.at]))
		return
	}
	p.Call("make "+m.at, unix.SYS_MKDIRAT, stage.Num(unix.AT_FDCWD), p.Text(m.at), stage.Num(0o755)).Accept(unix.EEXIST, 0)
	plainMount(p, what, m.source, m.at, m.kind, m.flags, m.data)
}

func makeDevice(p *stage.Program, path string, r stage.Register) {
	p.Call("make "+path, unix.SYS_MKNODAT, stage.Num(unix.AT_FDCWD), p.Text(path), stage.Num(unix.S_IFREG|0o666), stage.Num(0))
	attach(p, "mount "+path, path, stage.From(r))
}

// deviceLinks are what programs expect in /dev beside devices.
func deviceLinks(p *stage.Program) {
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"},
		{"pts/ptmx", "/dev/ptmx"},
	} {
		p.Call("link "+l[1], unix.SYS_SYMLINKAT, p.Text(l[0]), stage.Num(unix.AT_FDCWD), p.Text(l[1]))
	}
}

// hidePaths covers and write-protects what the specification says. A path that
// is not there needs neither.
func hidePaths(p *stage.Program, s *specs.Spec) {
	for _, path := range s.Linux.ReadonlyPaths {
		plainMount(p, "protect "+path, path, path, "", unix.MS_BIND|unix.MS_REC, "").Accept(unix.ENOENT, 1)
		readOnly(p, "protect "+path, path)
	}
	for _, path := range s.Linux.MaskedPaths {
		what := "mask " + path
		// A file is covered by the null device; a directory, which that fails on,
		// by an empty one.
		plainMount(p, what, "/dev/null", path, "", unix.MS_BIND, "").Skip(1).Accept(unix.ENOENT, 1).Accept(unix.ENOTDIR, 0)
		plainMount(p, what, "tmpfs", path, "tmpfs", unix.MS_RDONLY, "nr_inodes=2,size=4k")
	}
}
