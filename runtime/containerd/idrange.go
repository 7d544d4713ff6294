package containerd

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
)

// idsPerSandbox is the size of a range: all ids a container may name.
const idsPerSandbox = 65536

// idRange is one range of host user and group ids, mapped to 0..65535 inside.
// Its user namespace serves for idmapped mounts only; no process runs in it.
type idRange struct {
	base   uint32
	userns *os.File
}

// idRanges lends ranges. A range is lent to one sandbox at a time, the lowest
// free one first, so that its user namespace is made seldom.
type idRanges struct {
	base  uint32
	mu    sync.Mutex
	inUse []bool
	known []*os.File // user namespaces made so far, by index
	lock  *os.File   // claims the span for this process; nil where it was configured
}

var errNoRange = errors.New("no user id range is free: raise Config.UIDCount or remove sandboxes")

func newIDRanges(base uint32, count int, lock *os.File) *idRanges {
	return &idRanges{base: base, lock: lock, inUse: make([]bool, count), known: make([]*os.File, count)}
}

// lend takes a free range.
func (r *idRanges) lend() (idRange, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, used := range r.inUse {
		if used {
			continue
		}
		base := r.base + uint32(i)*idsPerSandbox
		if r.known[i] == nil {
			m := fmt.Sprintf("0:%d:%d", base, idsPerSandbox)
			f, err := mount.GetUsernsFD(m, m)
			if err != nil {
				return idRange{}, fmt.Errorf("make a user namespace: %w", err)
			}
			r.known[i] = f
		}
		r.inUse[i] = true
		return idRange{base: base, userns: r.known[i]}, nil
	}
	return idRange{}, errNoRange
}

// take marks the range of a recovered sandbox as lent.
func (r *idRanges) take(base uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, err := r.index(base)
	if err != nil {
		return err
	}
	if r.inUse[i] {
		return fmt.Errorf("user id range %d is lent twice", base)
	}
	r.inUse[i] = true
	return nil
}

// giveBack ends a loan. Nothing on a disk is ever owned by a range, so the
// next sandbox can have it at once.
func (r *idRanges) giveBack(base uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, err := r.index(base); err == nil {
		r.inUse[i] = false
	}
}

func (r *idRanges) index(base uint32) (int, error) {
	i := (int64(base) - int64(r.base)) / idsPerSandbox
	if base < r.base || base%idsPerSandbox != 0 || i >= int64(len(r.inUse)) {
		return 0, fmt.Errorf("user id range %d is outside of the configured %d ranges from %d on", base, len(r.inUse), r.base)
	}
	return int(i), nil
}

func (r *idRanges) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for i, f := range r.known {
		if f != nil {
			errs = append(errs, f.Close())
			r.known[i] = nil
		}
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
		r.lock = nil
	}
	return errors.Join(errs...)
}
