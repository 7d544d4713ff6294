package scratch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The bounds of one volume, in bytes.
const (
	MinBytes = 16 << 20
	MaxBytes = 8 << 40
)

// ErrUnsupported means that this host cannot encrypt a volume, or not reserve one.
var ErrUnsupported = errors.New("scratch: host lacks a needed feature")

// ErrFull means that the host's disk is short.
var ErrFull = errors.New("scratch: not enough space on the host's disk")

// Config says where volumes are.
type Config struct {
	Dir     string        // on ext4 or xfs; the volumes' files lie on its file system, without names
	Floor   int64         // bytes of that file system that volumes leave free
	Timeout time.Duration // making one volume, removing one
}

// Default is a configuration for volumes on the disk that dir is on.
func Default(dir string) Config {
	return Config{Dir: dir, Floor: 1 << 30, Timeout: 30 * time.Second}
}

// Store makes volumes.
type Store struct {
	cfg    Config
	mke2fs string
}

// Open makes the directory, removes what a store there left and tries all that a
// volume needs. An error that is ErrUnsupported says what the host lacks.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) || cfg.Floor < 0 || cfg.Timeout <= 0 {
		return nil, fmt.Errorf("scratch config: give an absolute directory, a floor of 0 or more and a timeout, not %+v", cfg)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the scratch directory: %w", err)
	}
	if err := reserves(cfg.Dir); err != nil {
		return nil, err
	}
	program, err := findProgram("mke2fs")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	s := &Store{cfg: cfg, mke2fs: program}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	v, err := s.Create(ctx, MinBytes)
	if err != nil {
		if errors.Is(err, ErrFull) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: a volume was tried: %w", ErrUnsupported, err)
	}
	if err := v.Remove(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// reserves says whether fallocate on the file system of dir is a promise: it is
// none where blocks are copied on write or are memory.
func reserves(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC:
		return nil
	}
	return fmt.Errorf("%w: %s is on a file system of type %#x: give a directory on ext4 or xfs", ErrUnsupported, dir, st.Type)
}

// findProgram looks beyond a daemon's PATH too, which often has no sbin.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err != nil {
		return "", fmt.Errorf("%s is missing (package e2fsprogs): %w", name, err)
	}
	return path, nil
}

// Free is how many bytes volumes could still take.
func (s *Store) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Dir, &st); err != nil {
		return 0, fmt.Errorf("free space for scratch: %w", err)
	}
	return max(int64(st.Bavail)*st.Bsize-s.cfg.Floor, 0), nil
}

// reserve is a file without a name whose blocks are all allocated.
func (s *Store) reserve(bytes int64) (_ *os.File, retErr error) {
	free, err := s.Free()
	if err != nil {
		return nil, err
	}
	if bytes > free {
		return nil, fmt.Errorf("%w: %d bytes asked for, %d free", ErrFull, bytes, free)
	}
	fd, err := unix.Open(s.cfg.Dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: a file without a name in %s: %w", ErrUnsupported, s.cfg.Dir, err)
	}
	f := os.NewFile(uintptr(fd), "scratch")
	defer func() {
		if retErr != nil {
			_ = f.Close() // and with it the file
		}
	}()
	err = unix.Fallocate(fd, 0, 0, bytes)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return nil, fmt.Errorf("%w: reserve %d bytes: %w", ErrFull, bytes, err)
	}
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes: %w", bytes, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("reserve %d bytes: %w", bytes, err)
	}
	if st.Size != bytes || st.Blocks*512 < bytes {
		return nil, fmt.Errorf("reserve %d bytes: the file has %d bytes in %d blocks", bytes, st.Size, st.Blocks)
	}
	return f, nil
}
