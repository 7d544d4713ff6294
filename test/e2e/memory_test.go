package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// proc is one process of a cluster, with the part it plays.
type proc struct {
	pid  int
	role string // coordinator, node, keybroker, manifest-opener, containerd, shim, agent, launcher, function, other
	args string
}

// inTask reports whether p runs inside a sandbox, where secrets belong.
func (p proc) inTask() bool { return p.role == "agent" || p.role == "launcher" || p.role == "function" }

func (p proc) String() string { return fmt.Sprintf("%s (pid %d)", p.role, p.pid) }

// procsOf lists the processes whose command line names one of marks, and all
// their descendants.
func procsOf(marks ...string) ([]proc, error) {
	type entry struct {
		proc
		parent int
		ours   bool
	}
	all := map[int]*entry{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(dir + "/cmdline")
		stat, err2 := os.ReadFile(dir + "/stat")
		if err != nil || err2 != nil {
			continue // it ended
		}
		e := &entry{proc: proc{pid: pid, args: strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))}}
		// "pid (name) state ppid": the name may hold anything but ends last.
		if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 1 {
			e.parent, _ = strconv.Atoi(f[1])
		}
		for _, m := range marks {
			e.ours = e.ours || strings.Contains(e.args, m)
		}
		all[pid] = e
	}
	for changed := true; changed; {
		changed = false
		for _, e := range all {
			if p := all[e.parent]; !e.ours && p != nil && p.ours {
				e.ours, changed = true, true
			}
		}
	}
	var out []proc
	for _, e := range all {
		if e.ours {
			e.role = roleOf(e.args)
			out = append(out, e.proc)
		}
	}
	return out, nil
}

func roleOf(args string) string {
	first, rest, _ := strings.Cut(args, " ")
	switch base := filepath.Base(first); {
	case strings.HasPrefix(base, "containerd-shim"):
		return "shim"
	case base == "coordinator", base == "node", base == "keybroker", base == "manifest-opener", base == "containerd":
		return base
	case first == "/.faasd-sec/agent" && strings.HasPrefix(rest, "launcher"):
		return "launcher"
	case first == "/.faasd-sec/agent":
		return "agent"
	case first == "/fn":
		return "function"
	}
	return "other"
}

// memory searches every page that a process has: heap, stacks, data and what it
// mapped, private or shared. found gets the kind of mapping and the address.
func (f *finder) memory(pid int, found func(n needle, where string)) (searched int64, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	pagemap, err := os.Open(dir + "/pagemap")
	if err != nil {
		return 0, err
	}
	defer pagemap.Close()
	maps, err := os.Open(dir + "/maps")
	if err != nil {
		return 0, err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to uint64
		var perms string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &perms); err != nil {
			return searched, fmt.Errorf("maps of %d: %q: %w", pid, lines.Text(), err)
		}
		name := "anonymous"
		if fields := strings.Fields(lines.Text()); len(fields) > 5 {
			name = strings.Join(fields[5:], " ")
		}
		if perms[0] != 'r' || strings.HasPrefix(name, "[v") { // vvar, vdso, vsyscall: the kernel's
			continue
		}
		k, err := f.region(mem, pagemap, from, to, func(n needle, addr uint64) {
			found(n, fmt.Sprintf("%s %s, %#x", name, perms, addr))
		})
		searched += k
		if err != nil {
			return searched, fmt.Errorf("memory of %d, %s: %w", pid, name, err)
		}
	}
	return searched, lines.Err()
}

// region searches the pages of [from, to) that are there. Runs of pages are read
// together, so that nothing hides by lying across two of them.
func (f *finder) region(mem, pagemap *os.File, from, to uint64, found func(needle, uint64)) (searched int64, err error) {
	const page, most = 4096, 1024 // pages read at once
	entries := make([]byte, 8*most)
	var buf []byte
	for at := from; at < to; {
		pages := min(most, (to-at)/page)
		k, err := pagemap.ReadAt(entries[:8*pages], int64(at/page*8))
		if k == 0 {
			if err == io.EOF {
				return searched, nil // the mapping is gone
			}
			return searched, err
		}
		pages = uint64(k / 8)
		for i := uint64(0); i < pages; {
			run := i
			for run < pages && binary.LittleEndian.Uint64(entries[8*run:])>>62 != 0 { // present or swapped
				run++
			}
			if run == i {
				i++
				continue
			}
			// Overlap with what came before, if it was read.
			start, back := at+i*page, uint64(0)
			if i == 0 && start > from {
				back = uint64(f.longest)
			}
			if need := int((run-i)*page + back); len(buf) < need {
				buf = make([]byte, need)
			}
			n, err := mem.ReadAt(buf[:(run-i)*page+back], int64(start-back))
			if n == 0 && back > 0 { // the page before is not there
				n, err = mem.ReadAt(buf[:(run-i)*page], int64(start))
				back = 0
			}
			if err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EFAULT) {
				return searched, err
			}
			f.search(buf[:n], func(nd needle, off int) { found(nd, start-back+uint64(off)) })
			searched += int64(n)
			i = run
		}
		at += pages * page
	}
	return searched, nil
}
