package backup

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly/own"
	"github.com/faasd-sec/faasd-sec/enrol"
)

// Dirs are the state directories that an archive holds, by the names that they
// have in it.
type Dirs struct {
	Coordinator string
	KeyBroker   string // "" leaves it out: it may be on another machine
	Opener      string // of the manifest opener; "" leaves it out
}

// Names inside an archive.
const (
	aboutName    = "about.json"
	snapshotName = "store.snapshot"
)

// about says what an archive is of.
type about struct {
	Format  int    `json:"format"` // 1
	Cluster string `json:"cluster"`
	Made    int64  `json:"made"` // unix seconds
}

// transient are parts of a coordinator's state that belong to one coordinator
// or one moment: a restored one makes its own.
var transient = []string{
	"etcd", enrol.IdentityFile, "member.pem", enrol.MembersFile, enrol.PeersFile, enrol.BootstrapFile, "join-token",
	own.Dir, own.KeyFile, own.KeyFile + ".pub", "registry/uploads", "registry/lock",
}

// Write archives the cluster of the coordinator that runs on d.Coordinator.
// snapshot writes its store; *enrol.RequestSnapshot does.
func Write(ctx context.Context, w io.Writer, d Dirs, snapshot func(context.Context, io.Writer) error) (retErr error) {
	var cl enrol.Cluster
	if err := enrol.Load(d.Coordinator, enrol.ClusterFile, "name the state directory of a coordinator", &cl); err != nil {
		return err
	}
	head, err := json.Marshal(about{Format: 1, Cluster: cl.ID, Made: time.Now().Unix()})
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	tw := tar.NewWriter(w)
	if err := entry(tw, aboutName, head); err != nil {
		return err
	}
	// A tar needs a length first; the snapshot's shows at its end.
	tmp, err := os.CreateTemp(d.Coordinator, ".snapshot-")
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer func() { retErr = errors.Join(retErr, tmp.Close()) }()
	if err := os.Remove(tmp.Name()); err != nil { // so that no kill leaves it behind
		return fmt.Errorf("backup: %w", err)
	}
	if err := snapshot(ctx, tmp); err != nil {
		return err
	}
	if err := file(tw, snapshotName, tmp, 0o600); err != nil {
		return err
	}
	for _, part := range d.parts() {
		if err := tree(ctx, tw, part.name, part.dir, part.skip); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

// part is one directory of an archive.
type part struct {
	name, dir string
	skip      []string
}

func (d Dirs) parts() []part {
	var all []part
	for _, p := range []part{{"coordinator", d.Coordinator, transient}, {"keybroker", d.KeyBroker, nil}, {"manifest-opener", d.Opener, nil}} {
		if p.dir != "" {
			all = append(all, p)
		}
	}
	return all
}

func entry(tw *tar.Writer, name string, b []byte) error {
	err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(b))})
	if err == nil {
		_, err = tw.Write(b)
	}
	if err != nil {
		return fmt.Errorf("backup: %s: %w", name, err)
	}
	return nil
}

func file(tw *tar.Writer, name string, f *os.File, mode fs.FileMode) error {
	st, err := f.Stat()
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode.Perm()), Size: st.Size()})
	}
	if err == nil {
		_, err = io.CopyN(tw, f, st.Size())
	}
	if err != nil {
		return fmt.Errorf("backup: %s: %w", name, err)
	}
	return nil
}

// tree archives the regular files below dir. Sockets and locks are nothing to
// keep; a file that goes away meanwhile was not needed.
func tree(ctx context.Context, tw *tar.Writer, name, dir string, skip []string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("backup: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		case slices.Contains(skip, filepath.ToSlash(p)) && e.IsDir():
			return fs.SkipDir
		case slices.Contains(skip, filepath.ToSlash(p)) || !e.Type().IsRegular() || strings.HasPrefix(path.Base(p), "."):
			return nil
		}
		f, err := root.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("backup: %w", err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return fmt.Errorf("backup: %w", err)
		}
		return file(tw, path.Join(name, filepath.ToSlash(p)), f, st.Mode())
	})
}
