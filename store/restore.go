package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"

	"github.com/faasd-sec/faasd-sec/api"
)

// restoreBump is how far versions leap in a restored store: more writes than
// there were between its snapshot and its loss, so that no version and no fence
// of then comes again.
const restoreBump = 1 << 32

// Restore makes dir the directory of a lone embedded member, a new cluster of
// its own, out of the file of a snapshot, whose checksum must hold. A directory
// that is not empty is refused with CodeConflict.
func Restore(dir, file string, cfg Config) error {
	if left, err := os.ReadDir(dir); err == nil && len(left) > 0 {
		return &api.Error{Code: api.CodeConflict, Field: "store.dir", Message: dir + " is not empty", Remedy: "restore into an empty directory"}
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("restore the store: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("restore the store: %w", err)
	}
	const name, nowhere = "embedded", "http://127.0.0.1:1"
	err := snapshot.NewV3(zapTo(cfg.Log)).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: name, OutputDataDir: filepath.Join(dir, "etcd"),
		PeerURLs: []string{nowhere}, InitialCluster: name + "=" + nowhere, InitialClusterToken: rand.Text(),
		RevisionBump: restoreBump, MarkCompacted: true,
	})
	if err != nil {
		return fmt.Errorf("restore the store: %w", err)
	}
	return nil
}
