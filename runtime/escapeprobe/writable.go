package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// writableAttempts are those that a root gives room for in which something can
// be written.
func writableAttempts(t targets) []attempt {
	if t.writable == "" {
		return nil
	}
	in := func(name string) string { return filepath.Join(t.writable, name) }
	return []attempt{
		{"writable_make_device", func() error { return unix.Mknod(in("mem2"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))) }},
		{"writable_make_block_device", func() error { return unix.Mknod(in("loop"), unix.S_IFBLK|0o666, int(unix.Mkdev(7, 0))) }},
		{"writable_open_device", func() error { return openable(in("mem"), unix.O_RDONLY) }},
		{"writable_open_null_device", func() error { return openable(in("null"), unix.O_RDWR) }},
		{"writable_open_block_device", func() error { return openable(in("disk"), unix.O_RDONLY) }},
		{"writable_set_user_id", func() error {
			if out, err := exec.Command(in("suid"), "-child=whoami").CombinedOutput(); err != nil {
				return fmt.Errorf("%w %.80s", err, out)
			}
			return nil
		}},
		{"writable_privilege_of_mount", func() error { // what makes the former inert, whoever asks
			var st unix.Statfs_t
			if err := unix.Statfs(t.writable, &st); err != nil {
				return err
			}
			if st.Flags&unix.ST_NOSUID != 0 && st.Flags&unix.ST_NODEV != 0 {
				return errors.New("nosuid and nodev")
			}
			return nil
		}},
		{"writable_opaque", func() error { return unix.Setxattr(t.writable, "trusted.overlay.opaque", []byte("y"), 0) }},
		{"writable_redirect", func() error { return unix.Setxattr(t.writable, "trusted.overlay.redirect", []byte("/etc"), 0) }},
		{"writable_overfill", func() error { return overfill(in("fill")) }},
		{"writable_inodes", func() error { return manyFiles(in("many")) }},
		{"control_write_root", func() error { return os.WriteFile(in(fmt.Sprintf("x%d", os.Getuid())), []byte("x"), 0o600) }},
	}
}

// replaceAttempts move aside what the sandbox's root owns, for something else to
// be found in its place.
func replaceAttempts() []attempt {
	var out []attempt
	for _, path := range []string{"/.faasd-sec", "/etc", "/run", "/proc", "/var"} {
		out = append(out, attempt{"replace_" + filepath.Base(path), func() error {
			if err := os.Rename(path, path+".old"); err != nil {
				return err
			}
			return os.Rename(path+".old", path)
		}})
	}
	return out
}

// manyFiles makes more files than a small file system should have room for.
func manyFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for i := range 1 << 16 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
