package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// counting sees from outside which tasks the functions of a cluster ran: each of
// their processes writes down what it runs, and runs nothing before somebody holds
// that file. It is held open until the process has ended, so that what was run is
// known however the sandbox or its machine went.
type counting struct {
	marks []string
	stop  chan struct{}
	done  sync.WaitGroup

	mu    sync.Mutex
	files map[int]*os.File // by process
	ran   map[string]int   // by task, of processes that have ended
	err   error
}

func startCounting(t *testing.T, marks ...string) *counting {
	c := &counting{marks: marks, stop: make(chan struct{}), files: map[int]*os.File{}, ran: map[string]int{}}
	c.done.Go(func() {
		for {
			if err := c.look(); err != nil {
				c.mu.Lock()
				c.err = err
				c.mu.Unlock()
			}
			select {
			case <-c.stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() {
		close(c.stop)
		c.done.Wait()
		for _, f := range c.files {
			_ = f.Close()
		}
	})
	return c
}

// look finds functions that are new, and closes the books of those that ended.
func (c *counting) look() error {
	procs, err := procsOf(c.marks...)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	live := map[int]bool{}
	for _, p := range procs {
		if p.role != "function" {
			continue
		}
		live[p.pid] = true
		if c.files[p.pid] != nil {
			continue
		}
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root/tmp/ran", p.pid), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue // it has run nothing yet, or is not there any more
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
			f.Close() // it is trying the lock itself
			continue
		}
		c.files[p.pid] = f
	}
	for pid, f := range c.files {
		if live[pid] {
			continue
		}
		if err := tallyOf(f, c.ran); err != nil {
			return err
		}
		f.Close()
		delete(c.files, pid)
	}
	return nil
}

func tallyOf(f *os.File, into map[string]int) error {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	for id := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n") {
		if id != "" {
			into[id]++
		}
	}
	return err
}

// counts is how often each task has been run so far.
func (c *counting) counts(t *testing.T) map[string]int {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]int{}
	for id, k := range c.ran {
		out[id] = k
	}
	err := c.err
	for _, f := range c.files {
		if e := tallyOf(f, out); e != nil {
			err = e
		}
	}
	if err != nil {
		t.Errorf("count what was run: %v", err)
	}
	return out
}
