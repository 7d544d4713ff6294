package backup

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/store"
)

// Read makes the directories of d out of an archive; each must be empty or not
// there yet. It returns the cluster's id. The coordinator's store is a new one
// with one member; what it had deployed is there. On an error what was written
// stays, and the coordinator's directory is not one that a coordinator starts
// with: the archive must be read again, into empty directories.
func Read(r io.Reader, d Dirs, log *slog.Logger) (cluster string, err error) {
	for _, p := range d.parts() {
		left, err := os.ReadDir(p.dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("restore: %w", err)
		}
		if len(left) > 0 {
			return "", &api.Error{Code: api.CodeConflict, Field: p.name, Message: p.dir + " is not empty",
				Remedy: "restore into an empty directory; move the old one away if it is done with"}
		}
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return "", fmt.Errorf("restore: %w", err)
		}
	}
	tr := tar.NewReader(r)
	var is about
	if err := readAbout(tr, &is); err != nil {
		return "", err
	}
	snapshot := filepath.Join(d.Coordinator, ".restore.snapshot")
	if err := unpack(tr, d, snapshot); err != nil {
		return "", err
	}
	// A sealed archive is verified to its end only by reading that.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return "", fmt.Errorf("restore: the archive is damaged: %w", err)
	}
	if err := store.Restore(filepath.Join(d.Coordinator, "etcd"), snapshot, store.DefaultConfig("", log)); err != nil {
		return "", err
	}
	if err := os.Remove(snapshot); err != nil {
		return "", fmt.Errorf("restore: %w", err)
	}
	// Unpacked under another name: it marks the directory as complete.
	if err := os.Rename(filepath.Join(d.Coordinator, unready), filepath.Join(d.Coordinator, enrol.ClusterFile)); err != nil {
		return "", fmt.Errorf("restore: the archive is not whole: %w", err)
	}
	return is.Cluster, nil
}

// unready is the cluster file before the directory is complete.
const unready = enrol.ClusterFile + ".restoring"

func readAbout(tr *tar.Reader, is *about) error {
	h, err := tr.Next()
	if err == nil && h.Name == aboutName {
		err = json.NewDecoder(io.LimitReader(tr, 1<<16)).Decode(is)
	}
	if err != nil || is.Format != 1 {
		return &api.Error{Code: api.CodeInvalid, Field: "file", Err: err, Message: "this is no archive of this release's faasd-sec backup",
			Remedy: "check the file; one that was sealed is opened by the identity it was sealed to"}
	}
	return nil
}

// unpack writes an archive's files where they belong; what is for a directory
// that d leaves out is passed over.
func unpack(tr *tar.Reader, d Dirs, snapshot string) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("restore: the archive is damaged: %w", err)
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) || path.Clean(h.Name) != h.Name {
			return api.Invalid("file", "use an archive of faasd-sec backup", fmt.Sprintf("it has an entry %q", h.Name))
		}
		to := snapshot
		if h.Name != snapshotName {
			if to = d.place(h.Name); to == "" {
				continue
			}
		}
		if err := write(to, tr, fs.FileMode(h.Mode).Perm()&0o700); err != nil {
			return fmt.Errorf("restore: %s: %w", h.Name, err)
		}
	}
}

// place is where an entry goes, "" for nowhere.
func (d Dirs) place(name string) string {
	for _, p := range d.parts() {
		rest, ok := strings.CutPrefix(name, p.name+"/")
		if !ok {
			continue
		}
		if p.dir == d.Coordinator && rest == enrol.ClusterFile {
			rest = unready
		}
		return filepath.Join(p.dir, filepath.FromSlash(rest))
	}
	return ""
}

// write makes one file that was not there, and has it on disk.
func write(to string, r io.Reader, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}
