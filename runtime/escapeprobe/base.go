package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// baseAttempts look for what a function's own root has nothing of: the agent,
// its sockets, the mounts and the processes of the sandbox around it.
func baseAttempts() []attempt {
	return []attempt{
		{"find_agent_binary", func() error { return openable("/.faasd-sec/agent", unix.O_PATH) }},
		{"find_run_dir", func() error { return openable("/run/faasd-sec", unix.O_PATH) }},
		{"find_waiting_root", func() error { return openable("/fn", unix.O_PATH) }},
		{"exe_of_first_process", func() error { _, err := os.Readlink("/proc/1/exe"); return err }},
		{"cwd_of_first_process", func() error { return openable("/proc/1/cwd", unix.O_PATH) }},
		{"mounts_of_first_process", func() error { return readable("/proc/1/mountinfo") }},
		{"namespaces_of_first_process", func() error { return openable("/proc/1/ns/mnt", unix.O_RDONLY) }},
		{"above_the_root", aboveRoot},
		{"mounts_tell_of_the_agent", mountsOfAgent},
		{"inherited_descriptor", inherited},
		{"processes_of_others", processesOfOthers},
		{"shared_memory_of_others", sharedMemory},
	}
}

// aboveRoot climbs: a root that is a directory of another file system would give
// way somewhere.
func aboveRoot() error {
	var root, up unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		return err
	}
	if err := unix.Stat("/"+strings.Repeat("../", 64), &up); err != nil {
		return err
	}
	if root.Dev == up.Dev && root.Ino == up.Ino {
		return errors.New("the root is its own parent")
	}
	return nil
}

// mountsOfAgent looks for traces of the agent's mounts in what the kernel lists
// for this process.
func mountsOfAgent() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 4 && (strings.Contains(f[4], "faasd-sec") || strings.HasPrefix(f[4], "/fn")) {
			return nil
		}
	}
	return errors.New("none is listed")
}

// inherited looks for descriptors beyond standard input, output and error that
// somebody else opened.
func inherited() error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	var found []string
	for _, n := range names {
		fd, err := strconv.Atoi(n)
		if err != nil || fd <= 2 || fd == int(dir.Fd()) {
			continue
		}
		target, _ := os.Readlink(filepath.Join("/proc/self/fd", n))
		if strings.HasPrefix(target, "anon_inode:") { // the Go runtime's own
			continue
		}
		found = append(found, n+" "+target)
	}
	if len(found) == 0 {
		return errors.New("none")
	}
	fmt.Fprintln(os.Stderr, found)
	return nil
}

// processesOfOthers counts processes that are neither this one nor its children.
func processesOfOthers() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	self := os.Getpid()
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == self {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err == nil && !strings.Contains(string(b), "\nPPid:\t"+strconv.Itoa(self)+"\n") {
			return nil
		}
	}
	return errors.New("none is seen")
}

// sharedMemory looks for System V objects that somebody else made.
func sharedMemory() error {
	for _, f := range []string{"/proc/sysvipc/shm", "/proc/sysvipc/msg", "/proc/sysvipc/sem"} {
		b, err := os.ReadFile(f)
		if err == nil && strings.Count(string(b), "\n") > 1 {
			return nil
		}
	}
	return errors.New("none")
}
