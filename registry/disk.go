package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func (r *Registry) blobPath(d digest) string {
	h := d.hex()
	return filepath.Join(r.cfg.Dir, "blobs", h[:2], h)
}

func (r *Registry) repoPath(name string) string { return filepath.Join(r.cfg.Dir, "repos", name) }

func (r *Registry) manifestPath(name string, d digest) string {
	return filepath.Join(r.repoPath(name), "_manifests", d.hex())
}

func (r *Registry) tagPath(name, tag string) string {
	return filepath.Join(r.repoPath(name), "_tags", tag)
}

// publish moves a finished, fsynced file to its place so that it is there
// after a power cut. Whoever was there before had the same name, so for what
// is addressed by content it had the same bytes.
func publish(from, to string) error {
	if err := mkdirSynced(filepath.Dir(to)); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// replaceFile writes a small file as a whole or not at all.
func (r *Registry) replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Join(r.cfg.Dir, "uploads"), "file-")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = publish(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// mkdirSynced makes a directory and its parents, each one's entry fsynced.
func mkdirSynced(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := mkdirSynced(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// freeBytes is what the registry's file system has left for us.
func (r *Registry) freeBytes() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(r.cfg.Dir, &st); err != nil {
		return 0, fmt.Errorf("statfs: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}
