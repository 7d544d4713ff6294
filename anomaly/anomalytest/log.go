// Package anomalytest opens anomaly logs for tests of those who write into them.
package anomalytest

import (
	"context"
	"crypto/rand"
	"path/filepath"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
)

// Open opens a member's log in a directory of its own, with a key of its own, until
// the test ends.
func Open(t testing.TB, member string) (log *anomaly.Log, dir string) {
	t.Helper()
	state := t.TempDir()
	key, err := anomaly.OpenKey(filepath.Join(state, "key"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg := anomaly.DefaultConfig()
	cfg.Dir, cfg.Node, cfg.Signer = filepath.Join(state, "log"), member, key
	if log, err = anomaly.Open(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := log.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return log, cfg.Dir
}
