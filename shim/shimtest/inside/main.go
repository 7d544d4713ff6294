// Command inside is the program of the containers in the shim's tests: it does
// what the variable shimtest.Inside says.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/shim/shimtest"
)

func main() { os.Exit(inside(os.Getenv(shimtest.Inside))) }

// inside does what it is told and gives an exit code.
func inside(what string) int {
	switch {
	case what == "sleep":
		time.Sleep(time.Hour)
	case strings.HasPrefix(what, "exit "):
		var code int
		if _, err := fmt.Sscanf(what, "exit %d", &code); err != nil {
			return 99
		}
		return code
	case what == "facts":
		b, err := json.Marshal(gather())
		if err != nil {
			return 98
		}
		if err := os.WriteFile("/shared/facts.new", b, 0o644); err != nil {
			return 97
		}
		return 0
	case strings.HasPrefix(what, "device "):
		if err := device(strings.Fields(what)[1:]); err != nil {
			fmt.Println(err)
		}
		return 0
	}
	return 100
}

// device uses one in the way that verb, path and number say.
func device(args []string) error {
	if mode, ok := strings.CutPrefix(args[0], "mknod:"); ok {
		m, err := strconv.ParseUint(mode, 8, 32)
		if err != nil {
			return err
		}
		number, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return unix.Mknod(args[1], uint32(m)|0o600, number)
	}
	fd, err := unix.Open(args[1], map[string]int{"r": unix.O_RDONLY, "w": unix.O_WRONLY, "rw": unix.O_RDWR}[args[0]]|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func gather() shimtest.Facts {
	f := shimtest.Facts{PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid(), Files: map[string]string{}, Writable: map[string]bool{}, Exists: map[string]bool{}}
	for _, name := range []string{
		"/proc/self/status", "/proc/self/cgroup", "/proc/self/mountinfo", "/proc/self/limits", "/proc/self/uid_map", "/proc/self/oom_score_adj",
		"/proc/keys", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/net/dev",
	} {
		b, err := os.ReadFile(name)
		if err != nil {
			b = []byte("error: " + err.Error())
		}
		f.Files[name] = string(b)
	}
	for _, name := range []string{"/tmp/x", "/dev/shm/x", "/x", "/bin/x", "/shared/x", "/proc/sys/net/ipv4/ip_forward", "/dev/null"} {
		file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
		f.Writable[name] = err == nil
		if err == nil {
			_ = file.Close()
		}
	}
	for _, name := range []string{"/dev/zero", "/dev/urandom", "/dev/fd", "/dev/kmsg", "/etc", "/root", "/proc/1", "/proc/acpi/x"} {
		_, err := os.Lstat(name)
		f.Exists[name] = err == nil
	}
	f.Hostname, _ = os.Hostname()
	if e, err := os.ReadDir("/proc/self/fd"); err == nil {
		for _, d := range e {
			// Those of Go's poller, and the one that reads, are our own.
			if to, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/proc/") {
				f.Descriptors++
			}
		}
	}
	_, _, errno := unix.RawSyscall(unix.SYS_PTRACE, 0, 0, 0)
	f.Denied = errno.Error()
	_, _, errno = unix.RawSyscall(10000, 0, 0, 0)
	f.NewCall = errno.Error()
	return f
}
