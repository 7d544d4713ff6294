package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Collect removes blobs that no manifest refers to and that nobody has pushed
// or asked for within grace, which must exceed the time of a push, and returns
// the bytes freed. Pushes wait while it sweeps; pulls do not.
func (r *Registry) Collect(ctx context.Context, grace time.Duration) (freed int64, err error) {
	r.gc.Lock()
	defer r.gc.Unlock()
	used := map[digest]bool{}
	if err := r.eachManifest(ctx, func(m manifest) {
		for _, ref := range m.blobs() {
			if d, ok := parseDigest(ref.Digest); ok {
				used[d] = true
			}
		}
	}); err != nil {
		return 0, err // with a manifest unread, nothing is known to be unused
	}
	before := r.cfg.Now().Add(-grace)
	err = filepath.WalkDir(filepath.Join(r.cfg.Dir, "blobs"), func(path string, e fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || e.IsDir() {
			return err
		}
		d, ok := parseDigest("sha256:" + e.Name())
		if !ok || used[d] {
			return nil
		}
		st, err := e.Info()
		if err != nil || st.ModTime().After(before) {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		freed += st.Size()
		return nil
	})
	if err != nil {
		return freed, fmt.Errorf("collect blobs: %w", err)
	}
	return freed, nil
}

func (r *Registry) eachManifest(ctx context.Context, visit func(manifest)) error {
	err := filepath.WalkDir(filepath.Join(r.cfg.Dir, "repos"), func(path string, e fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if e.IsDir() || filepath.Base(filepath.Dir(path)) != "_manifests" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m, err := parseManifest(b, "")
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		visit(m)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read manifests: %w", err)
	}
	return nil
}
