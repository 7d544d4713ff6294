package e2e

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// allowed says who may hold what. Nobody outside the task may hold anything of a
// request, a bundle or a result. The key broker may hold keys, since keeping them
// is its work: one copy of each, while it handles them. Afterwards it has none.
func allowed(p proc) func(string) bool {
	return func(secret string) bool {
		isKey := secret == keySigning || secret == keyDecryption
		return p.inTask() || p.role == "keybroker" && isKey
	}
}

// searchProcesses reads the memory of every process of the cluster.
func (h *hunt) searchProcesses(phase string) []row {
	h.t.Helper()
	procs, err := procsOf(h.ours...)
	if err != nil {
		h.t.Fatal(err)
	}
	slices.SortFunc(procs, func(a, b proc) int { return strings.Compare(a.role, b.role) })
	var rows []row
	for _, p := range procs {
		r := row{who: p.String(), phase: phase, allowed: allowed(p), seen: sightings{}}
		r.searched, err = h.find.memory(p.pid, func(n needle, where string) { r.seen.note(n, where) })
		if err != nil {
			if errors.Is(err, syscall.ESRCH) || errors.Is(err, fs.ErrNotExist) {
				if !slices.Contains([]string{"coordinator", "node", "keybroker", "containerd"}, p.role) {
					continue // runc, or a task that was being stopped
				}
			}
			h.t.Errorf("%v: %v", p, err)
		}
		if r.searched < 64<<10 {
			h.t.Errorf("%v: only %d bytes could be searched", p, r.searched)
		}
		rows = append(rows, r)
	}
	h.rows = append(h.rows, rows...)
	return rows
}

// inside checks that the search finds the secrets where they are: by the role of the
// process that has them.
func (h *hunt) inside(rows []row, wants map[string][]string) {
	h.t.Helper()
	seen := map[string]sightings{"function": {}, "agent": {}} // by all of a kind together: a call reaches one of them
	for _, r := range rows {
		role, _, _ := strings.Cut(r.who, " ")
		for secret, where := range r.seen {
			if all := seen[role]; all != nil {
				all[secret] = append(all[secret], where...)
			}
		}
	}
	for role, secrets := range wants {
		for _, secret := range secrets {
			if len(seen[role][secret]) == 0 {
				h.t.Errorf("the search does not find the %s in the memory of any %s, where it is: the search is broken", secret, role)
			}
		}
	}
}

// noCoreFiles checks that no process that holds secrets may leave its memory on
// a disk.
func (h *hunt) noCoreFiles() {
	h.t.Helper()
	procs, err := procsOf(h.ours...)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.pid))
		if err != nil || !p.inTask() && p.role != "keybroker" {
			continue
		}
		if m := regexp.MustCompile(`Max core file size\s+(\S+)\s+(\S+)`).FindSubmatch(b); m == nil || string(m[1])+string(m[2]) != "00" {
			h.t.Errorf("%v may write a core file: %q", p, m)
		}
	}
}

// searchFiles reads every file below the cluster's own directories, and those
// that anybody wrote meanwhile where temporary files and logs go.
func (h *hunt) searchFiles(phase string) {
	h.t.Helper()
	own := h.t.TempDir()
	if err := os.WriteFile(filepath.Join(own, "planted.gz"), gzipped(h.t, strings.Repeat("x", 1<<20-16)+h.can.planted), 0o600); err != nil {
		h.t.Fatal(err)
	}
	planted := sightings{}
	if _, _, err := h.find.tree(own, time.Time{}, nil, planted.note); err != nil || len(planted["planted"]) == 0 {
		h.t.Errorf("the search does not find a planted file: %v %v", planted, err)
	}
	none := func(string) bool { return false }
	for _, dir := range h.ours {
		r := row{who: "files below " + dir, phase: phase, allowed: none, seen: sightings{}}
		n, size, err := h.find.tree(dir, time.Time{}, nil, r.seen.note)
		if err != nil {
			h.t.Errorf("search %s: %v", dir, err)
		}
		r.searched = size
		h.t.Logf("%s: %d files", r.who, n)
		h.rows = append(h.rows, r)
	}
	testsOwn := filepath.Dir(own)
	r := row{who: "new files in /run /tmp /var", phase: phase, allowed: none, seen: sightings{}}
	for _, dir := range []string{"/run", "/tmp", "/var/log", "/var/tmp", "/var/lib/containerd", "/dev/shm"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		_, size, err := h.find.tree(dir, h.began, func(path string) bool {
			return path == testsOwn || strings.HasPrefix(path, testsOwn+"/") || slices.Contains(h.ours, path) ||
				strings.HasPrefix(path, "/tmp/go-build") || path == "/tmp/bash_jobs.0"
		}, r.seen.note)
		if err != nil {
			h.t.Errorf("search %s: %v", dir, err)
		}
		r.searched += size
	}
	h.rows = append(h.rows, r)

	kernel := row{who: "kernel log", phase: phase, allowed: none, seen: sightings{}}
	log := make([]byte, 4<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, log)
	if err != nil {
		h.t.Errorf("read the kernel's log: %v", err)
	}
	h.find.search(log[:max(n, 0)], func(n needle, off int) { kernel.seen.note(n, fmt.Sprintf("byte %d", off)) })
	kernel.searched = int64(n)
	h.rows = append(h.rows, kernel)
}

// searchTraffic looks through the capture, after one packet with the planted
// text, which must be found.
func (h *hunt) searchTraffic(c *capture) {
	h.t.Helper()
	conn, err := h.dial(h.t.Context(), "tcp", strings.TrimPrefix(h.c.Gateway(), "http://"))
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = io.WriteString(conn, h.can.planted)
	if err := errors.Join(err, conn.Close()); err != nil {
		h.t.Fatal(err)
	}
	c.stop(h.t, h.can.planted)
	r := row{who: "traffic", phase: "all", allowed: func(s string) bool { return s == "planted" }, seen: sightings{}}
	packets, flows, size, err := c.search(h.find, r.seen.note)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Logf("traffic: %d packets, %d directions of connections, %d bytes", packets, flows, size)
	if len(r.seen["planted"]) < 2 {
		h.t.Errorf("the search does not find a planted packet in packets and connections: %v", r.seen)
	}
	if size < 4<<20 {
		h.t.Errorf("only %d bytes were captured: more than that was sent", size)
	}
	r.searched = size
	h.rows = append(h.rows, r)
}

// plantedProcess checks the search on a process that is told a secret.
func (h *hunt) plantedProcess() {
	h.t.Helper()
	cmd := exec.Command("sh", "-c", "read -r told; echo ready; read -r end")
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }() // reads the end of its input
	if _, err := io.WriteString(in, h.can.planted+"\n"); err != nil {
		h.t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		h.t.Fatal(err)
	}
	seen := sightings{}
	if _, err := h.find.memory(cmd.Process.Pid, seen.note); err != nil || len(seen["planted"]) == 0 {
		h.t.Errorf("the search does not find a planted process: %v %v", seen, err)
	}
}

// report prints who could see what, and fails for everything not allowed.
func (h *hunt) report() {
	h.t.Helper()
	var b strings.Builder
	for _, r := range h.rows {
		var may, not []string
		for secret, where := range r.seen {
			if r.allowed(secret) {
				may = append(may, secret)
				continue
			}
			not = append(not, secret)
			h.t.Errorf("%s (%s) holds the %s: %s", r.who, r.phase, secret, strings.Join(where[:min(3, len(where))], "; "))
		}
		slices.Sort(may)
		text := "nothing"
		if len(may)+len(not) > 0 {
			text = strings.Join(may, ", ")
		}
		if strings.HasPrefix(r.who, "keybroker") {
			for _, secret := range may {
				if len(r.seen[secret]) > 1 {
					h.t.Errorf("%s (%s) holds more of the %s than the library's copy", r.who, r.phase, secret)
				}
				h.t.Logf("%s (%s): %d copies of the %s: %s", r.who, r.phase, len(r.seen[secret]), secret, strings.Join(r.seen[secret], "; "))
			}
		}
		if len(not) > 0 {
			slices.Sort(not)
			text += " AND MUST NOT: " + strings.Join(not, ", ")
		}
		fmt.Fprintf(&b, "%-9s %-36s %7.1f MB  %s\n", r.phase, r.who, float64(r.searched)/1e6, text)
	}
	h.t.Logf("who could see what:\n%s", b.String())
}

func gzipped(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, text)
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
