package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestTwoRuntimesNeverShareUserIDs(t *testing.T) {
	locks := t.TempDir()
	config := func(dir string, count int) Config {
		c := Default("/x", "n", dir)
		c.UIDLockDir, c.UIDCount = locks, count
		return c
	}
	a, b := config(t.TempDir(), 1000), config(t.TempDir(), 1000)
	baseA, lockA, err := claimSpan(a)
	if err != nil {
		t.Fatal(err)
	}
	baseB, lockB, err := claimSpan(b)
	if err != nil {
		t.Fatal(err)
	}
	defer lockB.Close()
	if uint64(baseB) < uint64(baseA)+1000*idsPerSandbox && uint64(baseA) < uint64(baseB)+1000*idsPerSandbox {
		t.Errorf("spans from %d and %d overlap", baseA, baseB)
	}
	// Spans of another width do not slip in between.
	other, lockC, err := claimSpan(config(t.TempDir(), 300))
	if err != nil {
		t.Fatal(err)
	}
	defer lockC.Close()
	for _, base := range []uint32{baseA, baseB} {
		if uint64(other) < uint64(base)+1000*idsPerSandbox && uint64(base) < uint64(other)+300*idsPerSandbox {
			t.Errorf("a span of 300 from %d overlaps that from %d", other, base)
		}
	}
	// A dies, its sandboxes do not.
	sandbox := filepath.Join(a.RunDir, "sandboxes", "s1")
	if err := os.MkdirAll(sandbox, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := lockA.Close(); err != nil {
		t.Fatal(err)
	}
	late := config(t.TempDir(), 1000)
	baseD, lockD, err := claimSpan(late)
	if err != nil {
		t.Fatal(err)
	}
	defer lockD.Close()
	if baseD == baseA {
		t.Error("the span of living sandboxes was claimed by another runtime")
	}
	again, lockA, err := claimSpan(a)
	if err != nil {
		t.Fatal(err)
	}
	if again != baseA {
		t.Errorf("after a restart the span begins at %d, before at %d", again, baseA)
	}
	// Once they are gone the span is anybody's.
	if err := errors.Join(lockA.Close(), os.Remove(sandbox)); err != nil {
		t.Fatal(err)
	}
	baseE, lockE, err := claimSpan(config(t.TempDir(), 1000))
	if err != nil {
		t.Fatal(err)
	}
	defer lockE.Close()
	if baseE != baseA {
		t.Errorf("a free span from %d was not taken, but %d", baseA, baseE)
	}
	if _, _, err := claimSpan(config(t.TempDir(), 49000)); !errors.Is(err, errNoSpan) {
		t.Errorf("more than there is: %v", err)
	}
}
