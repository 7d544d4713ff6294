package daemon

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func (d *Daemon) pidFile() string    { return filepath.Join(d.cfg.Dir, "containerd.pid") }
func (d *Daemon) configFile() string { return filepath.Join(d.cfg.Dir, "containerd.toml") }

// prepare makes the directories and writes the configuration. The directories
// can be passed through, not listed, by others: a container's root is an
// unprivileged user on the host and must reach its own bundle.
func (d *Daemon) prepare() error {
	for _, dir := range []string{d.cfg.Dir, d.path("root"), d.path("state"), d.path("opt")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("prepare containerd's directories: %w", err)
		}
	}
	if err := os.WriteFile(d.configFile(), d.config(), 0o600); err != nil {
		return fmt.Errorf("write containerd's configuration: %w", err)
	}
	return nil
}

func (d *Daemon) path(name string) string { return filepath.Join(d.cfg.Dir, name) }

// config is containerd's configuration in its version 2, which 1.6, 1.7 and
// 2.x all read. Nothing listens but the unix socket: no TCP debug or metrics
// endpoint, no CRI and so no streaming server.
func (d *Daemon) config() []byte {
	var b bytes.Buffer
	q := strconv.Quote
	fmt.Fprintf(&b, "version = 2\nroot = %s\nstate = %s\n", q(d.path("root")), q(d.path("state")))
	fmt.Fprintf(&b, "disabled_plugins = [%s]\n", strings.Join([]string{
		q("io.containerd.grpc.v1.cri"),
		q("io.containerd.internal.v1.restart"), // nobody but the node restarts a sandbox
		q("io.containerd.snapshotter.v1.aufs"),
		q("io.containerd.snapshotter.v1.btrfs"),
		q("io.containerd.snapshotter.v1.devmapper"),
		q("io.containerd.snapshotter.v1.zfs"),
		q("io.containerd.tracing.processor.v1.otlp"),
		q("io.containerd.internal.v1.tracing"),
	}, ", "))
	fmt.Fprintf(&b, "\n[grpc]\naddress = %s\n", q(d.cfg.Socket))
	fmt.Fprintf(&b, "\n[ttrpc]\naddress = %s\n", q(d.cfg.Socket+".ttrpc"))
	fmt.Fprintf(&b, "\n[debug]\naddress = \"\"\nlevel = \"warn\"\n")
	fmt.Fprintf(&b, "\n[metrics]\naddress = \"\"\n")
	fmt.Fprintf(&b, "\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = %s\n", q(d.path("opt")))
	return b.Bytes()
}

func writePID(file string, pid int) error {
	if err := os.WriteFile(file, []byte(strconv.Itoa(pid)+"\n"), 0o600); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	return nil
}

// running is the daemon that an earlier Start left in the directory. A pid
// that meanwhile belongs to something else is not taken for it. One whose parent
// was killed before it had written the pid down is looked for: a second daemon
// would wait for the first one's database for ever.
func (d *Daemon) running() (int, bool) {
	if b, err := os.ReadFile(d.pidFile()); err == nil {
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err == nil && pid > 1 && d.alive(pid) {
			return pid, true
		}
	}
	pids, err := processes(d.isOurs)
	if err != nil || len(pids) == 0 {
		return 0, false
	}
	return pids[0], true
}

// isOurs tells a containerd of this directory by its command line, which names
// our configuration. A zombie has none.
func (d *Daemon) isOurs(cmdline []byte) bool {
	return bytes.Contains(cmdline, []byte("\x00"+d.configFile()+"\x00"))
}

// alive reports whether pid is a live containerd of this directory.
func (d *Daemon) alive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && d.isOurs(b)
}

// shims lists the processes that serve tasks of this daemon: their command
// line names its socket.
func (d *Daemon) shims() ([]int, error) {
	return processes(func(cmdline []byte) bool {
		return bytes.Contains(cmdline, []byte("containerd-shim")) && bytes.Contains(cmdline, []byte("\x00"+d.cfg.Socket+"\x00"))
	})
}

// processes lists those whose command line, of words that end in NUL, is wanted.
func processes(wanted func(cmdline []byte) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && wanted(b) { // or it has ended
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
