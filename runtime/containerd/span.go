package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Where spans lie: above what systemd and useradd hand out by default, and
// below the ids that stand for "none".
const (
	firstSpan = 1 << 30
	lastID    = 1<<32 - 1<<16
)

// errNoSpan means that other runtimes of the machine have all spans.
var errNoSpan = errors.New("every span of user ids is taken by another runtime of this machine: lower Config.UIDCount, or set Config.UIDBase")

// claimSpan gives the first id of this runtime's span. Two nodes on one
// machine know nothing of each other, and two sandboxes with the same host ids
// could signal each other's processes if one ever left its pid namespace: so
// spans are claimed, by a lock that ends with the process and by the owner's
// RunDir in the lock file, which outlives it as its sandboxes do.
func claimSpan(cfg Config) (base uint32, lock *os.File, err error) {
	if cfg.UIDBase != 0 {
		return cfg.UIDBase, nil, nil
	}
	if err := os.MkdirAll(cfg.UIDLockDir, 0o700); err != nil {
		return 0, nil, fmt.Errorf("claim user ids: %w", err)
	}
	width := int64(cfg.UIDCount) * idsPerSandbox
	remembered, err := rememberedSpan(cfg.RunDir)
	if err != nil {
		return 0, nil, err
	}
	if remembered != 0 {
		if lock, err := tryClaim(cfg, remembered); err != nil || lock != nil {
			return remembered, lock, err
		}
	}
	for b := int64(firstSpan); b+width <= lastID; b += width {
		lock, err := tryClaim(cfg, uint32(b))
		if err != nil {
			return 0, nil, err
		}
		if lock == nil {
			continue
		}
		if err := os.WriteFile(spanFile(cfg.RunDir), []byte(strconv.FormatInt(b, 10)), 0o600); err != nil {
			return 0, nil, errors.Join(fmt.Errorf("claim user ids: %w", err), lock.Close())
		}
		return uint32(b), lock, nil
	}
	return 0, nil, errNoSpan
}

func spanFile(runDir string) string { return filepath.Join(runDir, "uid-base") }

// rememberedSpan is the span of an earlier life, 0 if there was none.
func rememberedSpan(runDir string) (uint32, error) {
	b, err := os.ReadFile(spanFile(runDir))
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(b) == 0) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("claim user ids: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || n%idsPerSandbox != 0 {
		return 0, fmt.Errorf("claim user ids: %s holds %q, which is no span: remove the sandboxes, then the file", spanFile(runDir), b)
	}
	return uint32(n), nil
}

// tryClaim locks a span for as long as the file stays open; nil if another
// runtime has it. Spans of different widths may overlap, so what is locked are
// all ranges in it: bytes of one file, a byte for each.
func tryClaim(cfg Config, base uint32) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(cfg.UIDLockDir, "ranges"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claim user ids: %w", err)
	}
	// An open file description lock belongs to f: other files of this process
	// neither share nor drop it.
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(base) / idsPerSandbox, Len: int64(cfg.UIDCount)}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("claim user ids: %w", err), f.Close())
	}
	taken, err := outlived(cfg, base)
	if err != nil || taken {
		return nil, errors.Join(err, f.Close())
	}
	if err := os.WriteFile(ownerFile(cfg, base), []byte(cfg.RunDir), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("claim user ids: %w", err), f.Close())
	}
	return f, nil
}

func ownerFile(cfg Config, base uint32) string {
	return filepath.Join(cfg.UIDLockDir, fmt.Sprintf("%d-%d", base, cfg.UIDCount))
}

// outlived reports whether sandboxes of another runtime, which is not running
// now, may still have ids of the span.
func outlived(cfg Config, base uint32) (bool, error) {
	entries, err := os.ReadDir(cfg.UIDLockDir)
	if err != nil {
		return false, fmt.Errorf("claim user ids: %w", err)
	}
	end := int64(base) + int64(cfg.UIDCount)*idsPerSandbox
	for _, e := range entries {
		var from, count int64
		if n, _ := fmt.Sscanf(e.Name(), "%d-%d", &from, &count); n != 2 || from >= end || from+count*idsPerSandbox <= int64(base) {
			continue
		}
		owner, err := os.ReadFile(filepath.Join(cfg.UIDLockDir, e.Name()))
		if err != nil {
			return false, fmt.Errorf("claim user ids: %w", err)
		}
		if string(owner) == cfg.RunDir {
			continue
		}
		left, err := os.ReadDir(filepath.Join(string(owner), "sandboxes"))
		if err == nil && len(left) > 0 {
			return true, nil
		}
	}
	return false, nil
}
