package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// readable says whether a file gives at least one byte: masked files open, and
// are empty.
func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 1)); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("empty")
		}
		return err
	}
	return nil
}

func openable(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func writable(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// reallyWritable is openable for writing, except where the path is /dev/null
// in disguise, which is how files are masked.
func reallyWritable(path string) error {
	var st, null unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if err := unix.Stat("/dev/null", &null); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == null.Rdev {
		return errors.New("masked")
	}
	return openable(path, unix.O_WRONLY)
}

func hasLine(text, line string) bool { return slices.Contains(strings.Split(text, "\n"), line) }

func fileAttempts(t targets) []attempt {
	return []attempt{
		{"mount_tmpfs", func() error { return unix.Mount("x", "/tmp", "tmpfs", 0, "") }},
		{"mount_proc", func() error { return unix.Mount("x", "/tmp", "proc", 0, "") }},
		{"mount_cgroup", func() error { return unix.Mount("x", "/tmp", "cgroup", 0, "memory") }},
		{"mount_cgroup2", func() error { return unix.Mount("x", "/tmp", "cgroup2", 0, "") }},
		{"mount_bind", func() error { return unix.Mount("/", "/tmp", "", unix.MS_BIND, "") }},
		{"remount_root_rw", func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") }},
		{"fsopen", func() error { _, err := unix.Fsopen("tmpfs", 0); return err }},
		{"open_tree", func() error { _, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE); return err }},
		{"umount", func() error { return unix.Unmount("/tmp", unix.MNT_DETACH) }},
		{"pivot_root", func() error { return unix.PivotRoot("/tmp", "/tmp") }},
		{"chroot", func() error { return unix.Chroot("/tmp") }},
		{"mknod_device", func() error { return unix.Mknod("/tmp/mem", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))) }},
		{"open_image_device", func() error { return openable(t.device, unix.O_RDONLY) }},
		{"unexpected_device", unexpectedDevice},
		{"name_to_handle_at", func() error { return call(unix.SYS_NAME_TO_HANDLE_AT, 0, 0, 0, 0, 0) }},
		{"open_by_handle_at", func() error { return call(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0) }},
		{"write_root", func() error { return os.WriteFile("/x", nil, 0o600) }},
		{"write_bin", func() error { return os.WriteFile("/bin/x", nil, 0o600) }},
		{"replace_agent", func() error { return openable("/.faasd-sec/agent", unix.O_WRONLY) }},
		{"write_hosts", func() error { return openable("/etc/hosts", unix.O_WRONLY) }},
		{"enter_run_dir", func() error { return openable("/run/faasd-sec", unix.O_RDONLY) }},
		{"reach_agent_socket", func() error { return openable("/run/faasd-sec/agent.sock", unix.O_PATH) }},
		{"exec_from_tmp", func() error { return execFrom("/tmp") }},
		{"exec_from_shm", func() error { return execFrom("/dev/shm") }},
		{"overfill_tmp", func() error { return overfill("/tmp/fill") }},
		{"overfill_shm", func() error { return overfill("/dev/shm/fill") }},
		{"write_sysctl_host", func() error { return openable("/proc/sys/kernel/core_pattern", unix.O_WRONLY) }},
		{"write_sysctl_net", func() error { return openable("/proc/sys/net/ipv4/ip_forward", unix.O_WRONLY) }},
		{"sysrq", func() error { return reallyWritable("/proc/sysrq-trigger") }},
		{"read_kcore", func() error { return readable("/proc/kcore") }},
		{"read_kmsg", func() error { return readable("/proc/kmsg") }},
		{"read_dev_kmsg", func() error { return openable("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK) }},
		{"read_kallsyms", func() error { return readable("/proc/kallsyms") }},
		{"read_modules", func() error { return readable("/proc/modules") }},
		{"read_cmdline_of_kernel", func() error { return readable("/proc/cmdline") }},
		{"read_keys", func() error { return readable("/proc/keys") }},
		{"read_iomem", func() error { return readable("/proc/iomem") }},
		{"list_sys", func() error { return listable("/sys") }},
		{"list_cgroups", func() error { return listable("/sys/fs/cgroup") }},
		{"mounts_tell_of_host", func() error {
			b, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				return err
			}
			if strings.Contains(string(b), " cgroup") || strings.Contains(string(b), " sysfs") {
				return nil
			}
			return errors.New("neither cgroup nor sysfs is mounted")
		}},
	}
}

func listable(dir string) error {
	e, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(e) == 0 {
		return errors.New("empty")
	}
	return nil
}

// unexpectedDevice looks for device nodes in /dev that can be opened and are
// not those every program may have.
func unexpectedDevice() error {
	known := []string{"null", "zero", "full", "random", "urandom", "tty"}
	var found []string
	err := filepath.WalkDir("/dev", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be listed cannot be used
		}
		if d.Type()&os.ModeDevice != 0 && !slices.Contains(known, d.Name()) && openable(path, unix.O_RDONLY|unix.O_NONBLOCK) == nil {
			found = append(found, path)
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		return fmt.Errorf("none (%v)", err)
	}
	return nil
}

func execFrom(dir string) error {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "copy")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		return err
	}
	defer os.Remove(path)
	return exec.Command(path, "-child=nothing").Run()
}

// overfill takes 1 GiB of a file system that should have much less.
func overfill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, 1<<30)
}
