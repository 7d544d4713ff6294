// Command whosees looks for words in the memory of every process of a local
// cluster and in every file below its state directory, and prints who holds
// which. The demo runs it after an invocation; the tests hunt more thoroughly.
//
// It ends with status 1 if a word is anywhere but inside a sandbox.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

func main() {
	state := flag.String("state", "", "state `directory` of the cluster, as up prints it")
	flag.Parse()
	if *state == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: whosees -state DIR NAME=WORD …")
		os.Exit(2)
	}
	leaked, err := run(*state, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "whosees:", err)
		os.Exit(2)
	}
	if leaked {
		os.Exit(1)
	}
}

// word is what is looked for.
type word struct {
	name string
	text []byte
}

// process is one process of the cluster.
type process struct {
	pid, parent int
	args        string
	role        string
}

func run(state string, args []string) (leaked bool, err error) {
	var words []word
	for _, a := range args {
		name, text, ok := strings.Cut(a, "=")
		if !ok || len(text) < 8 {
			return false, fmt.Errorf("%q: write NAME=WORD with a word of 8 bytes or more", a)
		}
		words = append(words, word{name, []byte(text)})
	}
	procs, err := cluster(state)
	if err != nil {
		return false, err
	}
	seen := map[string][]bool{}
	pids := map[string]int{}
	mark := func(role string, i int) {
		if seen[role] == nil {
			seen[role] = make([]bool, len(words))
		}
		if i >= 0 {
			seen[role][i] = true
		}
	}
	for _, p := range procs {
		mark(p.role, -1)
		pids[p.role]++
		if err := searchMemory(p.pid, words, func(i int) { mark(p.role, i) }); err != nil {
			return false, fmt.Errorf("memory of %s (%d): %w", p.role, p.pid, err)
		}
	}
	const disk = "disk: state, registry, etcd, images, logs"
	mark(disk, -1)
	if err := searchFiles(state, words, func(i int) { mark(disk, i) }); err != nil {
		return false, err
	}
	roles := make([]string, 0, len(seen))
	for r := range seen {
		roles = append(roles, r)
	}
	sort.Slice(roles, func(i, j int) bool {
		return rank(roles[i]) < rank(roles[j]) || rank(roles[i]) == rank(roles[j]) && roles[i] < roles[j]
	})
	fmt.Printf("  %-44s", "who holds it")
	for _, w := range words {
		fmt.Printf("  %-14s", w.name)
	}
	fmt.Println()
	for _, r := range roles {
		label := r
		if pids[r] > 0 {
			label = fmt.Sprintf("memory of %s (%d)", r, pids[r])
		}
		fmt.Printf("  %-44s", label)
		for i := range words {
			cell := "no"
			if seen[r][i] {
				cell = "YES"
				leaked = leaked || !inside(r)
			}
			fmt.Printf("  %-14s", cell)
		}
		fmt.Println()
	}
	return leaked, nil
}

// inside reports whether a role belongs to a sandbox, where words may be.
func inside(role string) bool { return strings.HasPrefix(role, "sandbox") }

func rank(role string) int {
	switch {
	case inside(role):
		return 1
	case strings.HasPrefix(role, "disk"):
		return 2
	}
	return 0
}

// cluster lists the processes that belong to the state directory: those that
// name it, or the run directory of such a one, and their descendants.
func cluster(state string) ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	all := map[int]*process{}
	marks := []string{state}
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		cmd, err1 := os.ReadFile(d + "/cmdline")
		stat, err2 := os.ReadFile(d + "/stat")
		if err1 != nil || err2 != nil || pid == os.Getpid() || pid == os.Getppid() || len(cmd) == 0 {
			continue
		}
		p := &process{pid: pid, args: strings.ReplaceAll(string(cmd), "\x00", " ")}
		// "pid (name) state ppid …"; the name may hold anything.
		if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(f) > 1 {
			p.parent, _ = strconv.Atoi(f[1])
		}
		all[pid] = p
		if strings.Contains(p.args, "-state "+state) || strings.Contains(p.args, "--state-dir "+state) {
			if _, after, ok := strings.Cut(p.args, "-containerd "); ok {
				sock, _, _ := strings.Cut(after, " ")
				marks = append(marks, filepath.Dir(sock))
			}
		}
	}
	ours := map[int]bool{}
	for _, p := range all {
		for _, m := range marks {
			ours[p.pid] = ours[p.pid] || strings.Contains(p.args, m) && !strings.Contains(p.args, "faasd-sec up")
		}
	}
	for again := true; again; {
		again = false
		for _, p := range all {
			if !ours[p.pid] && ours[p.parent] {
				ours[p.pid], again = true, true
			}
		}
	}
	var out []process
	for _, p := range all {
		if ours[p.pid] {
			p.role = roleOf(p.args)
			out = append(out, *p)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no process belongs to %s", state)
	}
	return out, nil
}

func roleOf(args string) string {
	first, rest, _ := strings.Cut(args, " ")
	base := filepath.Base(first)
	switch {
	case first == "/.faasd-sec/agent" && strings.HasPrefix(rest, "launcher"):
		return "sandbox: launcher"
	case first == "/.faasd-sec/agent":
		return "sandbox: agent"
	case strings.HasPrefix(base, "containerd-shim"):
		return "containerd-shim"
	case base == "coordinator" || base == "node" || base == "keybroker" || base == "manifest-opener" || base == "containerd":
		return base
	}
	return "sandbox: function"
}

// searchMemory looks through every readable mapping of a process.
func searchMemory(pid int, words []word, found func(int)) error {
	dir := fmt.Sprintf("/proc/%d", pid)
	maps, err := os.ReadFile(dir + "/maps")
	if err != nil {
		return ignoreGone(err)
	}
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return ignoreGone(err)
	}
	defer mem.Close()
	for line := range strings.SplitSeq(string(maps), "\n") {
		var from, to int64
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n != 3 || perms[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		// What cannot be read is not there: pages never touched, devices.
		_ = search(io.NewSectionReader(mem, from, to-from), words, found)
	}
	return nil
}

func ignoreGone(err error) error {
	if os.IsNotExist(err) || strings.Contains(err.Error(), "no such process") {
		return nil
	}
	return err
}

// searchFiles looks through every file below dir.
func searchFiles(dir string, words []word, found func(int)) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return ignoreGone(orNil(err))
		}
		f, err := os.Open(path)
		if err != nil {
			return ignoreGone(err)
		}
		defer f.Close()
		return search(f, words, found)
	})
}

func orNil(err error) error {
	if err == nil {
		return fs.ErrNotExist
	}
	return err
}

// search reads r in overlapping pieces, so that a word on a seam is found.
func search(r io.Reader, words []word, found func(int)) error {
	longest := 0
	for _, w := range words {
		longest = max(longest, len(w.text))
	}
	br := bufio.NewReaderSize(r, 1<<20)
	buf := make([]byte, 0, 2<<20)
	for {
		n, err := io.ReadFull(br, buf[len(buf):min(cap(buf), len(buf)+1<<20)])
		buf = buf[:len(buf)+n]
		for i, w := range words {
			if bytes.Contains(buf, w.text) {
				found(i)
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
		keep := min(len(buf), longest-1)
		copy(buf, buf[len(buf)-keep:])
		buf = buf[:keep]
	}
}
