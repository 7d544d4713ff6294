package agent

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// reaper is the one place that waits for children. As PID 1 it collects every
// orphan of the sandbox; nothing in this process uses os/exec, whose waits it
// would race with.
type reaper struct {
	stop chan struct{}
	wg   sync.WaitGroup
}

// startReaper collects pid and, with all, every other child too, until close.
func startReaper(pid int, all bool) *reaper {
	r := &reaper{stop: make(chan struct{})}
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	target := pid
	if all {
		target = -1
	}
	collect := func() (none bool) {
		for {
			got, err := syscall.Wait4(target, nil, syscall.WNOHANG, nil)
			switch {
			case errors.Is(err, syscall.EINTR):
			case err != nil:
				return true
			case got == 0:
				return false
			}
		}
	}
	r.wg.Go(func() {
		defer signal.Stop(chld)
		for {
			if collect() && !all {
				return
			}
			select {
			case <-chld:
			case <-r.stop:
				if !all { // the launcher is ending: it saw its socket close
					_, _ = syscall.Wait4(pid, nil, 0, nil)
				}
				return
			}
		}
	})
	return r
}

// close ends the reaper.
func (r *reaper) close() {
	close(r.stop)
	r.wg.Wait()
}
