package blob

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/faasd-sec/faasd-sec/api"
)

func put(t *testing.T, d *Dir, text string) (string, func()) {
	t.Helper()
	digest, size, release, err := d.Put(strings.NewReader(text))
	if err != nil || size != int64(len(text)) {
		t.Fatal(size, err)
	}
	return digest, release
}

func TestBlobIsReadAsItWasPut(t *testing.T) {
	d, err := Open(t.TempDir(), 100)
	if err != nil {
		t.Fatal(err)
	}
	digest, release := put(t, d, "hello")
	defer release()
	r, err := d.Get(digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := d.Get(strings.Repeat("0", 64)); api.CodeOf(err) != api.CodeNotFound {
		t.Error(err)
	}
	if _, err := d.Get("../x"); api.CodeOf(err) != api.CodeInvalid {
		t.Error(err)
	}
}

func TestDamageIsNoticedAndBoundsHold(t *testing.T) {
	dir := t.TempDir()
	d, err := Open(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := put(t, d, "hello")
	if err := os.WriteFile(filepath.Join(dir, digest), []byte("hellO"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := d.Get(digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); api.CodeOf(err) != api.CodeInternal {
		t.Error(err)
	}
	if _, _, _, err := d.Put(strings.NewReader("more than ten bytes")); api.CodeOf(err) != api.CodeTooLarge {
		t.Error(err)
	}
	cut := errors.New("cut")
	if _, _, _, err := d.Put(iotest.ErrReader(cut)); !errors.Is(err, cut) {
		t.Error(err)
	}
	if n, _, err := d.Usage(); n != 1 || err != nil {
		t.Errorf("%d are left, %v", n, err)
	}
}

func TestWhatNobodyNamesIsCollectedAlsoAfterACrash(t *testing.T) {
	dir := t.TempDir()
	d, err := Open(dir, 100)
	if err != nil {
		t.Fatal(err)
	}
	named, release := put(t, d, "named")
	release()
	_, held := put(t, d, "held")
	_, release = put(t, d, "nobody's")
	release()
	used := func(_ context.Context, digest string) (bool, error) { return digest == named, nil }
	if n, err := d.Collect(t.Context(), 0, used); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	held()
	if err := os.WriteFile(filepath.Join(dir, partial+"123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err = Open(dir, 100); err != nil { // after a crash: holds are gone, and so is what was half written
		t.Fatal(err)
	}
	if n, err := d.Collect(t.Context(), 0, used); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if n, _, err := d.Usage(); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}
