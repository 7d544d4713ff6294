// Package blob is a directory of large bodies, each under the digest of its
// content.
//
// Promised: what Put returned is whole, and durable: file and directory are
// fsynced before. A reader gets what was put, or an error that says it is not
// that. A blob that is held, or that a record uses by the word of Collect's
// caller, is not removed; what a crash left half written is removed by Open.
// Memory does not grow with a blob's size.
//
// Not promised: secrecy. Bodies of sealed functions are sealed; those of plain
// ones lie in the directory as they came, readable by this user alone.
package blob

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Dir is an open directory of blobs. It is safe for concurrent use by one process.
type Dir struct {
	path string
	max  int64

	mu   sync.Mutex
	held map[string]int
}

const partial = "partial-" // before the names of what is being written

// Open makes the directory where there is none, mode 0700, and removes what was
// half written. max bounds one blob, in bytes.
func Open(path string, max int64) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("blobs: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(path, partial+"*"))
	if err != nil {
		return nil, fmt.Errorf("blobs: %w", err)
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil {
			return nil, fmt.Errorf("blobs: %w", err)
		}
	}
	return &Dir{path: path, max: max, held: map[string]int{}}, nil
}

// Put stores what r gives up to its end, and holds it until release is called:
// by then a record names it, or nobody wants it. A body over the bound gives
// CodeTooLarge; an error of r is returned as it is.
func (d *Dir) Put(r io.Reader) (digest string, size int64, release func(), retErr error) {
	f, err := os.CreateTemp(d.path, partial+"*")
	if err != nil {
		return "", 0, nil, fmt.Errorf("blobs: %w", err)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, f.Close())
			_ = os.Remove(f.Name()) // Open removes it else
		}
	}()
	h := sm3.New()
	size, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(r, d.max+1))
	switch {
	case err != nil:
		return "", 0, nil, err
	case size > d.max:
		e := api.Errorf(api.CodeTooLarge, "the body is over the %d bytes that an asynchronous call may have", d.max)
		e.Field, e.Remedy = "body", "send less, or have the operator raise -async-max-body"
		return "", 0, nil, e
	}
	if err := f.Sync(); err != nil {
		return "", 0, nil, fmt.Errorf("blobs: %w", err)
	}
	digest = hex.EncodeToString(h.Sum(nil))
	end := d.hold(digest)
	defer func() {
		if retErr != nil {
			end()
		}
	}()
	if err := os.Rename(f.Name(), d.file(digest)); err != nil {
		return "", 0, nil, fmt.Errorf("blobs: %w", err)
	}
	if err := d.sync(); err != nil {
		return "", 0, nil, err
	}
	if err := f.Close(); err != nil {
		return "", 0, nil, fmt.Errorf("blobs: %w", err)
	}
	return digest, size, end, nil
}

func (d *Dir) file(digest string) string { return filepath.Join(d.path, digest) }

// sync makes the directory's entries durable.
func (d *Dir) sync() error {
	dir, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	return nil
}

func (d *Dir) hold(digest string) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[digest]++
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.held[digest]--; d.held[digest] <= 0 {
			delete(d.held, digest)
		}
	})
}

// Get opens a blob; CodeNotFound if there is none. Its last Read fails where the
// content is not that of the digest.
func (d *Dir) Get(digest string) (io.ReadCloser, error) {
	if b, err := hex.DecodeString(digest); err != nil || len(b) != 32 {
		return nil, api.Invalid("digest", "use 64 hex characters", "it is not a digest")
	}
	f, err := os.Open(d.file(digest))
	if errors.Is(err, os.ErrNotExist) {
		return nil, api.Wrap(api.CodeNotFound, err, "the body is not stored here")
	}
	if err != nil {
		return nil, fmt.Errorf("blobs: %w", err)
	}
	return &reader{f: f, h: sm3.New(), digest: digest}, nil
}

// reader compares what was read with the digest at the end.
type reader struct {
	f      *os.File
	h      hash.Hash
	digest string
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
	_, _ = r.h.Write(p[:n])
	if err == io.EOF && hex.EncodeToString(r.h.Sum(nil)) != r.digest {
		return n, api.Errorf(api.CodeInternal, "a stored body is damaged")
	}
	return n, err
}

// Close implements io.Closer.
func (r *reader) Close() error { return r.f.Close() }

// Collect removes blobs that used says no record names, and that were there for
// longer than age: a record may be on its way. It returns how many.
func (d *Dir) Collect(ctx context.Context, age time.Duration, used func(ctx context.Context, digest string) (bool, error)) (int, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return 0, fmt.Errorf("blobs: %w", err)
	}
	n := 0
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, partial) {
			continue // being written: Open removes those that no process writes
		}
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < age {
			continue
		}
		in, err := used(ctx, name)
		if err != nil {
			return n, err
		}
		if in || !d.remove(name) {
			continue
		}
		n++
	}
	return n, nil
}

// remove takes a blob away unless somebody holds it.
func (d *Dir) remove(digest string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held[digest] == 0 && os.Remove(d.file(digest)) == nil
}

// Usage counts the blobs and their bytes.
func (d *Dir) Usage() (count int, bytes int64, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return 0, 0, fmt.Errorf("blobs: %w", err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			count, bytes = count+1, bytes+info.Size()
		}
	}
	return count, bytes, nil
}
