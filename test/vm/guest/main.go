//go:build linux

// Command guest is the first process of the virtual machine in which the tests
// run a second time: on a kernel with the pure cgroup v2 hierarchy. It makes a
// file system of memory its root, mounts what a system has mounted, runs the
// programs that tests.json lists one after the other, says how each ended, and
// turns the machine off. Called as "go" it hands out what the host has built,
// since there is no toolchain in here.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// job is one program to run; test/vm writes it.
type job struct {
	Name    string        `json:"name"`
	Args    []string      `json:"args"`
	Timeout time.Duration `json:"timeout"` // nanoseconds; then it is killed
}

func main() {
	if filepath.Base(os.Args[0]) == "go" {
		if err := handOut(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "go:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: only the first process of a virtual machine runs this")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("VM-FAILED", err)
	}
	unix.Sync()
	// The machine monitor is told to end where the machine would start again.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {} // the first process must not end
}

// handOut copies the programs that were built of packages:
// "build … -o PATH PACKAGE", or more of them into a directory.
func handOut(args []string) error {
	at := slices.Index(args, "-o")
	if at < 0 || at+2 >= len(args) {
		return fmt.Errorf("only go build -o PATH PACKAGE... is to be had here, not %q", args)
	}
	to := args[at+1]
	info, err := os.Stat(to)
	for _, pkg := range args[at+2:] {
		path := to
		if err == nil && info.IsDir() {
			path = filepath.Join(to, filepath.Base(pkg))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := copyFile("/built/"+filepath.Base(pkg), path, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func run() error {
	if err := newRoot(); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	for _, m := range []struct{ source, target, kind, data string }{
		{"proc", "/proc", "proc", ""}, {"sysfs", "/sys", "sysfs", ""}, {"dev", "/dev", "devtmpfs", ""},
		{"devpts", "/dev/pts", "devpts", ""}, {"shm", "/dev/shm", "tmpfs", ""}, {"run", "/run", "tmpfs", ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := disk("/tmp"); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	b, err := os.ReadFile("/tests.json")
	if err != nil {
		return err
	}
	var jobs []job
	if err := json.Unmarshal(b, &jobs); err != nil {
		return fmt.Errorf("tests.json: %w", err)
	}
	for _, j := range jobs {
		fmt.Println("VM-START", j.Name)
		status, err := j.run()
		if err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
		fmt.Println("VM-END", j.Name, status)
	}
	return nil
}

// newRoot copies everything into a file system of memory and makes it the root:
// containers cannot pivot away from the first one (pivot_root(2)).
func newRoot() error {
	if err := os.Mkdir("/new", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("root", "/new", "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "/" {
			return err
		}
		if path == "/new" {
			return fs.SkipDir
		}
		switch info, err := d.Info(); {
		case err != nil:
			return err
		case d.IsDir():
			return os.Mkdir("/new"+path, info.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(to, "/new"+path)
		case d.Type().IsRegular():
			if err := copyFile(path, "/new"+path, info.Mode().Perm()); err != nil {
				return err
			}
			return os.Remove(path) // there is one memory for both
		}
		return nil // devices come with devtmpfs
	})
	if err != nil {
		return err
	}
	return errors.Join(os.Chdir("/new"), unix.Mount("/new", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/"))
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// loadModules loads the kernel's modules in the order of /modules/order.
func loadModules() error {
	b, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(b)) {
		f, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		params := ""
		if name == "brd" {
			params = "rd_nr=1 rd_size=1572864" // KiB, taken when written
		}
		err = unix.FinitModule(int(f.Fd()), params, 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

// disk mounts a disk of memory at dir. Its file system is one whose layers can be
// id-mapped on kernels on which those in tmpfs cannot.
func disk(dir string) error {
	if out, err := exec.Command("/usr/bin/mke2fs", "-q", "-t", "ext4", "/dev/ram0").CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w\n%s", err, out)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev/ram0", dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return os.Chmod(dir, 0o777|fs.ModeSticky)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// run starts the job and reaps, as a first process must, everything that ends
// until the job has ended.
func (j job) run() (status string, err error) {
	if err := os.MkdirAll("/jobs/"+j.Name, 0o755); err != nil {
		return "", err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	pid, err := syscall.ForkExec(j.Args[0], j.Args, &syscall.ProcAttr{
		Dir:   "/jobs/" + j.Name,
		Env:   []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "REQUIRE_ALL=1", "TMPDIR=/tmp"},
		Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return "", err
	}
	late := time.NewTimer(j.Timeout)
	defer late.Stop()
	for {
		for {
			var ws syscall.WaitStatus
			got, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err != nil || got <= 0 {
				break
			}
			if got == pid && ws.Exited() {
				return fmt.Sprintf("exit %d", ws.ExitStatus()), nil
			}
			if got == pid {
				return "signal " + ws.Signal().String(), nil
			}
		}
		select {
		case <-ended:
		case <-late.C:
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
