package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/store"
)

// running is a coordinator's state with an open store, and a key broker's.
func running(t *testing.T) (Dirs, *store.Store, *slog.Logger) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	base := t.TempDir()
	d := Dirs{Coordinator: filepath.Join(base, "coordinator"), KeyBroker: filepath.Join(base, "keybroker")}
	if _, err := enrol.Init(d.Coordinator, []string{"any"}, rand.Reader); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		filepath.Join(d.Coordinator, "registry/blobs/ab/abcd"): "layer",
		filepath.Join(d.Coordinator, "registry/uploads/x"):     "half a layer",
		filepath.Join(d.Coordinator, enrol.IdentityFile):       "its own",
		filepath.Join(d.KeyBroker, "vault/f"):                  "sealed",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d, open(t, d, log), log
}

func open(t *testing.T, d Dirs, log *slog.Logger) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.DefaultConfig(filepath.Join(d.Coordinator, "etcd"), log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func snapshotOf(s *store.Store) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		r, err := s.Snapshot(ctx)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(w, r)
		return err
	}
}

func TestWhatWasArchivedIsThereAgain(t *testing.T) {
	d, s, log := running(t)
	f := store.Function{Name: "f." + api.DefaultNamespace, Revision: "ab", Descriptor: []byte{1}}
	version, err := s.PutFunction(t.Context(), f, store.Absent)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := Write(t.Context(), &archive, d, snapshotOf(s)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DeleteFunction(t.Context(), f.Name, store.AnyVersion); err != nil {
		t.Fatal(err)
	}

	base := t.TempDir()
	to := Dirs{Coordinator: filepath.Join(base, "c"), KeyBroker: filepath.Join(base, "k")}
	cluster, err := Read(bytes.NewReader(archive.Bytes()), to, log)
	if err != nil {
		t.Fatal(err)
	}
	var cl enrol.Cluster
	if err := enrol.Load(to.Coordinator, enrol.ClusterFile, "", &cl); err != nil || cl.ID != cluster {
		t.Fatalf("cluster %q, %v", cl.ID, err)
	}
	back := open(t, to, log)
	got, err := back.GetFunction(t.Context(), f.Name)
	if err != nil || got.Revision != f.Revision {
		t.Fatalf("%+v, %v", got, err)
	}
	if v, err := back.PutFunction(t.Context(), f, got.Version); err != nil || v <= version {
		t.Fatalf("version %d after %d, %v", v, version, err)
	}
	for name, want := range map[string]string{
		"c/registry/blobs/ab/abcd": "layer", "k/vault/f": "sealed", "c/registry/uploads/x": "", "c/" + enrol.IdentityFile: "",
	} {
		b, err := os.ReadFile(filepath.Join(base, name))
		if string(b) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(d.Coordinator, ".snapshot-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRestoringOverwritesNothing(t *testing.T) {
	d, s, log := running(t)
	var archive bytes.Buffer
	if err := Write(t.Context(), &archive, d, snapshotOf(s)); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(&archive, d, log); api.CodeOf(err) != api.CodeConflict {
		t.Fatalf("over a cluster that is there: %v", err)
	}
}

func TestDamagedArchivesMakeNoCoordinator(t *testing.T) {
	d, s, log := running(t)
	var archive bytes.Buffer
	if err := Write(t.Context(), &archive, d, snapshotOf(s)); err != nil {
		t.Fatal(err)
	}
	whole := archive.Bytes()
	flipped := bytes.Clone(whole)
	flipped[bytes.Index(flipped, []byte(snapshotName))+20000] ^= 1 // within the snapshot
	for what, b := range map[string][]byte{"nothing": nil, "text": []byte("hello"), "the first half": whole[:len(whole)/2],
		"another snapshot": flipped} {
		to := Dirs{Coordinator: filepath.Join(t.TempDir(), "c")}
		if _, err := Read(bytes.NewReader(b), to, log); err == nil {
			t.Errorf("%s was restored", what)
		}
		var cl enrol.Cluster
		if err := enrol.Load(to.Coordinator, enrol.ClusterFile, "", &cl); err == nil {
			t.Errorf("%s left a coordinator", what)
		}
	}
}

// A backup that is killed leaves no copy of the store behind.
func TestSnapshotHasNoName(t *testing.T) {
	d, s, _ := running(t)
	read := snapshotOf(s)
	err := Write(t.Context(), io.Discard, d, func(ctx context.Context, w io.Writer) error {
		if err := read(ctx, w); err != nil {
			return err
		}
		left, err := filepath.Glob(filepath.Join(d.Coordinator, ".snapshot*"))
		if err != nil || len(left) > 0 {
			t.Error(left, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
