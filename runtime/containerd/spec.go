package containerd

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// Sizes of the memory-backed directories that every sandbox has, in bytes.
const (
	defaultTmp  = 64 << 20
	shmBytes    = 16 << 20
	secretBytes = 1 << 20
	secretsPath = "/var/openfaas/secrets"
)

// The environment by which the agent learns the function's ids.
const (
	envUID = "FAASD_SEC_UID"
	envGID = "FAASD_SEC_GID"
)

// capabilities are all that PID 1 has, in its own user namespace only, and all
// that anything in the sandbox can ever get:
//
//	SETUID, SETGID  the agent starts the launcher under the function's ids
//	SETPCAP         it takes the bounding set away from launcher and function
//	KILL            it ends processes of the function, which have another uid
func capabilities() []string {
	return []string{"CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"}
}

// blankCapabilities are what PID 1 of a blank begins with, in its own user
// namespace only: the launcher sets up namespaces with them. Agent and launcher
// give them up, the bounding set included, before the sandbox is in the pool;
// what the launcher keeps to change root and ids goes before a function runs.
func blankCapabilities() []string {
	return []string{"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"}
}

// blankSpec describes a sandbox without a function: the agent and nothing else.
// /proc has no masks, since the kernel would refuse the launcher one of its own
// beside a masked one; the launcher's, which the function gets, has them.
func (r *Runtime) blankSpec(s runtime.Spec, root, cgroup string, base uint32, limits cgroups.Limits) *specs.Spec {
	o := r.ociSpec(s, cgroup, base, limits)
	o.Root.Path = root
	o.Process.Env = append(blankEnvironment(s), api.EnvBlank+"=1")
	o.Linux.MaskedPaths, o.Linux.ReadonlyPaths = nil, nil
	o.Mounts = blankMounts(s)
	// The profile follows the capabilities, but for SYS_ADMIN, which would bring
	// far more than the two calls that the launcher needs it for.
	caps := slices.DeleteFunc(blankCapabilities(), func(c string) bool { return c == "CAP_SYS_ADMIN" })
	o.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	o.Linux.Seccomp = seccompProfile(o, true)
	o.Linux.Seccomp.Syscalls = append(o.Linux.Seccomp.Syscalls, specs.LinuxSyscall{
		Names: []string{"clone", "mount", "umount2"}, Action: specs.ActAllow,
	})
	caps = blankCapabilities()
	o.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	return o
}

// ociSpec describes the sandbox to the OCI runtime.
func (r *Runtime) ociSpec(s runtime.Spec, cgroup string, base uint32, limits cgroups.Limits) *specs.Spec {
	caps := capabilities()
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: base, Size: idsPerSandbox}}
	oom := 500 // before the host's daemons, should the machine as a whole run out
	swappiness := uint64(0)
	quota, period := limits.CPU.Quota.Microseconds(), uint64(limits.CPU.Period.Microseconds())
	shares := uint64(limits.CPU.Shares)

	o := &specs.Spec{
		Version: "1.0.2", // what runc 1.1 knows; nothing newer is used
		Root:    &specs.Root{Path: r.rootfs(s.ID), Readonly: s.Resources.Storage == 0},
		// The same for all: a name would tell the function where it runs.
		Hostname: "sandbox",
		Process: &specs.Process{
			User: specs.User{UID: 0, GID: 0},
			Args: []string{api.AgentBinary},
			Env:  environment(s),
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps, Permitted: caps,
			},
			NoNewPrivileges: true,
			OOMScoreAdj:     &oom,
			Rlimits:         r.rlimits,
		},
		Mounts: mounts(s),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.UserNamespace}, {Type: specs.CgroupNamespace},
			},
			UIDMappings: ids,
			GIDMappings: ids,
			CgroupsPath: cgroup,
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Memory:  &specs.LinuxMemory{Limit: &limits.Memory.Bytes, Swap: &limits.Memory.Bytes, Swappiness: &swappiness},
				CPU:     &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
				Pids:    &specs.LinuxPids{Limit: limits.PIDs},
			},
			// A function is not root, and images expect to listen on 80. The
			// setting is the sandbox's network namespace's own.
			Sysctl:            map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
			RootfsPropagation: "rprivate",
			MaskedPaths:       maskedPaths(),
			ReadonlyPaths:     readonlyPaths(),
		},
	}
	o.Linux.Seccomp = seccompProfile(o, s.AllowInet)
	return o
}

// environment is PID 1's: what the node gave, with the function's ids as they
// were decided here.
func environment(s runtime.Spec) []string {
	env := slices.DeleteFunc(slices.Clone(s.AgentEnv), func(kv string) bool {
		return strings.HasPrefix(kv, envUID+"=") || strings.HasPrefix(kv, envGID+"=")
	})
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return append(env, envUID+"="+strconv.Itoa(s.UID), envGID+"="+strconv.Itoa(s.GID))
}

// blankEnvironment is PID 1's of a sandbox whose ids are not known yet.
func blankEnvironment(s runtime.Spec) []string {
	return slices.DeleteFunc(environment(s), func(kv string) bool {
		return strings.HasPrefix(kv, envUID+"=") || strings.HasPrefix(kv, envGID+"=")
	})
}

// blankMounts are those of the agent. The function sees none of them.
func blankMounts(s runtime.Spec) []specs.Mount {
	return slices.DeleteFunc(mounts(s), func(m specs.Mount) bool {
		switch m.Destination {
		case "/proc", "/dev", api.AgentRunDir, api.AgentBinary:
			return false
		}
		return true
	})
}

// mounts are all mounts of the sandbox beside its root. There is no sysfs, no
// cgroup file system, no devpts: nothing in a sandbox needs them.
func mounts(s runtime.Spec) []specs.Mount {
	tmp := s.Resources.Tmp
	if tmp == 0 {
		tmp = defaultTmp
	}
	m := []specs.Mount{
		// hidepid: the function does not see the agent. gid=0: the agent, the
		// only process of that group, sees the function.
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev", "hidepid=2", "gid=0"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=64"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: tmpfsOptions(shmBytes, false, "mode=1777")},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmp", Options: tmpfsOptions(tmp, false, "mode=1777")},
		{Destination: api.AgentRunDir, Type: "bind", Source: s.SocketDir, Options: []string{"bind", "rw", "nosuid", "nodev", "noexec"}},
		{Destination: api.AgentBinary, Type: "bind", Source: s.AgentPath, Options: []string{"bind", "ro", "nosuid", "nodev"}},
	}
	owned := []string{"mode=700", "uid=" + strconv.Itoa(s.UID), "gid=" + strconv.Itoa(s.GID)}
	for _, t := range withSecrets(s.Tmpfs) {
		m = append(m, specs.Mount{Destination: t.Path, Type: "tmpfs", Source: "tmpfs", Options: tmpfsOptions(t.Bytes, t.Exec, owned...)})
	}
	return m
}

// withSecrets adds the directory that functions of OpenFaaS find their secrets
// in, unless the node asked for one of its own there.
func withSecrets(in []runtime.Tmpfs) []runtime.Tmpfs {
	for _, t := range in {
		if t.Path == secretsPath {
			return in
		}
	}
	return append(slices.Clone(in), runtime.Tmpfs{Path: secretsPath, Bytes: secretBytes})
}

// tmpfsOptions bounds a tmpfs by bytes and by files: each file costs the
// kernel about a kilobyte that no size limit counts.
func tmpfsOptions(size int64, exec bool, more ...string) []string {
	o := []string{"nosuid", "nodev", fmt.Sprintf("size=%d", size), fmt.Sprintf("nr_inodes=%d", max(size/4096, 64))}
	if !exec {
		o = append(o, "noexec")
	}
	return append(o, more...)
}

// maskedPaths are hidden in a sandbox, readonlyPaths cannot be written.
func maskedPaths() []string { return append(below("/proc/", api.MaskedProc()), "/sys") }

func readonlyPaths() []string { return below("/proc/", api.ReadOnlyProc()) }

func below(dir string, names []string) []string {
	out := make([]string, 0, len(names)+1)
	for _, n := range names {
		out = append(out, dir+n)
	}
	return out
}
