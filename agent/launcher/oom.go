package launcher

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// preferred is the oom_score_adj of a function's processes.
const preferred = 500

// oomScore makes the kernel choose a function's process over the launcher, which
// is in the same cgroup and without which the sandbox ends: the launcher has the
// higher score while it forks, and the child keeps it. It is a wish: where /proc
// refuses, the kernel's own choice by size is nearly always the same.
type oomScore struct {
	fd  int // -1 where nothing is to be done
	own []byte
}

// openOOM opens the launcher's own score, which it may only while it is dumpable.
func openOOM() *oomScore {
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &oomScore{fd: -1}
	}
	var buf [16]byte
	n, err := unix.Read(fd, buf[:])
	own := strings.TrimSpace(string(buf[:max(n, 0)]))
	if score, aerr := strconv.Atoi(own); err != nil || aerr != nil || score >= preferred {
		_ = unix.Close(fd)
		return &oomScore{fd: -1}
	}
	return &oomScore{fd: fd, own: []byte(own)}
}

func (o *oomScore) prefer(this bool) {
	if o.fd < 0 {
		return
	}
	score := o.own
	if this {
		score = strconv.AppendInt(nil, preferred, 10)
	}
	_, _ = unix.Pwrite(o.fd, score, 0)
}
