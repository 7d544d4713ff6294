package container

import (
	"errors"
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/shim/seccomp"
	"github.com/faasd-sec/faasd-sec/shim/stage"
)

// Plan is a specification that was understood in all its parts, before
// anything was made of it.
type Plan struct {
	spec       *specs.Spec
	mounts     []mount
	limits     cgroups.Limits
	rlimits    []rlimit
	uids, gids string
	namespaces uint64 // unix.CLONE_NEW*
	filter     []bpf.RawInstruction
}

// NewPlan understands a checked specification, or says what it cannot.
func NewPlan(s *specs.Spec) (*Plan, error) {
	p := &Plan{spec: s}
	var errs [7]error
	p.mounts, errs[0] = mountsOf(s.Mounts)
	p.limits, errs[1] = Limits(s.Linux.Resources)
	p.rlimits, errs[2] = rlimitsOf(s.Process.Rlimits)
	p.namespaces, errs[3] = namespacesOf(s.Linux.Namespaces)
	p.uids, errs[4] = idMap("uidMappings", s.Linux.UIDMappings)
	p.gids, errs[5] = idMap("gidMappings", s.Linux.GIDMappings)
	errs[6] = checkDevices(s.Linux.Resources.Devices)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	var err error
	if p.filter, err = seccomp.Compile(s.Linux.Seccomp); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	return p, nil
}

// namespacesOf demands all namespaces but that of clocks: a container that
// shared one with the host would not be one of ours.
func namespacesOf(list []specs.LinuxNamespace) (uint64, error) {
	kinds := map[specs.LinuxNamespaceType]uint64{
		specs.PIDNamespace: unix.CLONE_NEWPID, specs.MountNamespace: unix.CLONE_NEWNS, specs.NetworkNamespace: unix.CLONE_NEWNET,
		specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
		specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
	}
	var flags, all uint64
	for _, f := range kinds {
		all |= f
	}
	for _, ns := range list {
		f, ok := kinds[ns.Type]
		if !ok || flags&f != 0 {
			return 0, fmt.Errorf("linux.namespaces: %q is not implemented, or there twice", ns.Type)
		}
		flags |= f
	}
	if flags != all {
		return 0, refused("linux.namespaces", "containers with pid, mount, network, ipc, uts, user and cgroup namespaces of their own")
	}
	return flags, nil
}

// program writes down what the init process does until it executes the
// container's program. tasks are the files by which it enters its cgroups.
// sources are the trees that it binds.
func (pl *Plan) program(p *stage.Program, tasks []int, sources sources) error {
	s := pl.spec
	// A process that moves itself, alone in its thread group, does so without
	// the lock whose RCU grace period costs milliseconds.
	zero := p.Text("0")
	for _, fd := range tasks {
		p.Call("enter the cgroups", unix.SYS_WRITE, stage.Num(fd), zero, stage.Num(1)).Exactly(1)
	}
	p.CloseOthers(sources.list()...)
	p.Wait("wait for the user ids")
	becomeRoot(p)
	// Only now, so that the namespace's root is the container's group.
	p.Call("make the cgroup namespace", unix.SYS_UNSHARE, stage.Num(unix.CLONE_NEWCGROUP))
	p.Call("make a session", unix.SYS_SETSID)
	// Without its own, the process would have the session keyring of containerd.
	p.Call("make a session keyring", unix.SYS_KEYCTL, stage.Num(unix.KEYCTL_JOIN_SESSION_KEYRING), stage.Num(0)).Accept(unix.ENOSYS, 0)
	loopbackUp(p)
	if err := enterRoot(p, s, pl.mounts, sources); err != nil {
		return err
	}
	deviceLinks(p)
	if s.Root.Readonly {
		readOnly(p, "make the root read-only", "/")
	}
	p.Call("set the host name", unix.SYS_SETHOSTNAME, p.Text(s.Hostname), stage.Num(len(s.Hostname)))
	for key, value := range s.Linux.Sysctl {
		sysctl(p, key, value)
	}
	hidePaths(p, s)
	nullStreams(p)
	p.Call("set the umask", unix.SYS_UMASK, stage.Num(0o022))
	if err := limitPrivileges(p, s.Process.Capabilities); err != nil {
		return err
	}
	p.Ready()
	p.Wait("wait for the start")
	// Every signal was blocked when this process was made.
	p.Call("unblock signals", unix.SYS_RT_SIGPROCMASK, stage.Num(unix.SIG_SETMASK), p.Words(0, 0), stage.Num(0), stage.Num(8))
	path, argv, env := p.Text(s.Process.Args[0]), p.Texts(s.Process.Args), p.Texts(s.Process.Env)
	filter(p, pl.filter)
	p.Call("execute "+s.Process.Args[0], unix.SYS_EXECVE, path, argv, env)
	return nil
}

// loopbackUp brings the one interface of a new network namespace up.
func loopbackUp(p *stage.Program) {
	const (
		what = "bring the loopback up"
		r    = stage.Register(0)
	)
	ifreq := make([]byte, 40) // struct ifreq: the name, then the flags
	copy(ifreq, "lo")
	ifreq[16] = unix.IFF_UP
	p.Call(what, unix.SYS_SOCKET, stage.Num(unix.AF_INET), stage.Num(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), stage.Num(0)).Into(r)
	p.Call(what, unix.SYS_IOCTL, stage.From(r), stage.Num(unix.SIOCSIFFLAGS), p.Bytes(ifreq))
	p.Call(what, unix.SYS_CLOSE, stage.From(r))
}

func sysctl(p *stage.Program, key, value string) {
	what, r := "set "+key, stage.Register(0)
	p.Call(what, unix.SYS_OPENAT, stage.Num(unix.AT_FDCWD), p.Text("/proc/sys/"+strings.ReplaceAll(key, ".", "/")), stage.Num(unix.O_WRONLY|unix.O_CLOEXEC), stage.Num(0)).Into(r)
	p.Call(what, unix.SYS_WRITE, stage.From(r), p.Text(value), stage.Num(len(value))).Exactly(int32(len(value)))
	p.Call(what, unix.SYS_CLOSE, stage.From(r))
}

// nullStreams makes the container's own null device standard input, output and
// error, in place of the host's.
func nullStreams(p *stage.Program) {
	const what, r = "open the standard streams", stage.Register(0)
	p.Call(what, unix.SYS_OPENAT, stage.Num(unix.AT_FDCWD), p.Text("/dev/null"), stage.Num(unix.O_RDWR|unix.O_CLOEXEC), stage.Num(0)).Into(r)
	for fd := range 3 {
		p.Call(what, unix.SYS_DUP3, stage.From(r), stage.Num(fd), stage.Num(0))
	}
}
