package node

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// agentFile tells one state of the agent's binary on disk from another.
type agentFile struct {
	dev, ino uint64
	size     int64
	mtime    time.Time
}

// agentBinary follows the agent's binary on disk. Evidence names its digest, so
// it is measured anew before anything is made of a replaced one.
type agentBinary struct {
	path    string
	measure func() error // nil: nobody names its digest

	mu   sync.Mutex
	last agentFile // what was measured
}

// current looks at the binary, and has it measured where it is not what it was.
func (a *agentBinary) current() (agentFile, error) {
	now, err := a.stat()
	if err != nil {
		return agentFile{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now == a.last {
		return now, nil
	}
	if a.measure != nil {
		if err := a.measure(); err != nil {
			return agentFile{}, fmt.Errorf("measure the agent: %w", err)
		}
		// What was measured is what is there now, or the next look sees it.
		if again, err := a.stat(); err != nil || again != now {
			return agentFile{}, fmt.Errorf("the agent's binary %s is being replaced", a.path)
		}
	}
	a.last = now
	return now, nil
}

// measured reports whether f is what evidence speaks of now.
func (a *agentBinary) measured(f agentFile) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return f == a.last
}

func (a *agentBinary) stat() (agentFile, error) {
	st, err := os.Stat(a.path)
	if err != nil {
		return agentFile{}, fmt.Errorf("the agent's binary: %w", err)
	}
	f := agentFile{size: st.Size(), mtime: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		f.dev, f.ino = sys.Dev, sys.Ino
	}
	return f, nil
}
