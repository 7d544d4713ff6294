package keybroker

import (
	"bytes"
	"crypto/rand"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testVault(t testing.TB) *vault {
	t.Helper()
	v, err := openVault(t.TempDir(), make([]byte, 16), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func testRecord(mark byte) *record {
	return &record{Version: recordVersion, Owner: make([]byte, 65), Sequence: uint64(mark),
		Descriptor: make([]byte, 900), Signing: bytes.Repeat([]byte{mark}, 32), Decryption: [][]byte{bytes.Repeat([]byte{mark}, 32)}}
}

// settle reads name until its file is kept in memory.
func settle(t testing.TB, v *vault) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(v.path("f.ns"), &st); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); v.seen["f.ns"].id != idOf(&st); time.Sleep(20 * time.Millisecond) {
		r, err := v.recall("f.ns")
		if err != nil || time.Now().After(end) {
			t.Fatalf("not kept: %v", err)
		}
		r.wipe()
	}
}

func TestWhatIsRecalledIsWhatLiesOnTheDisk(t *testing.T) {
	v := testVault(t)
	if r, err := v.recall("f.ns"); r != nil || err != nil {
		t.Fatalf("of a function that is unknown: %v, %v", r, err)
	}
	if err := v.write("f.ns", testRecord(1)); err != nil {
		t.Fatal(err)
	}
	settle(t, v)
	for range 2 { // wiping what was opened leaves the next one whole
		r, err := v.recall("f.ns")
		if err != nil || r.Signing[0] != 1 || r.Decryption[0][31] != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		r.wipe()
	}
	if bytes.Contains(v.seen["f.ns"].bytes, bytes.Repeat([]byte{1}, 32)) {
		t.Error("a key is kept in clear")
	}
	other := testVault(t)
	if err := other.write("f.ns", testRecord(2)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other.path("f.ns"), v.path("f.ns")); err != nil { // by another process, as a restored backup
		t.Fatal(err)
	}
	if r, err := v.recall("f.ns"); err != nil || r.Sequence != 2 {
		t.Errorf("after it was replaced: %+v, %v", r, err)
	}
	settle(t, v)
	f, err := os.OpenFile(v.path("f.ns"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0}, 60); err != nil {
		t.Fatal(err)
	}
	if _, err := v.recall("f.ns"); err == nil {
		t.Error("a file that was changed in place was not looked at")
	}
	if err := v.write("f.ns", testRecord(3)); err != nil {
		t.Fatal(err)
	}
	if r, err := v.recall("f.ns"); err != nil || r.Sequence != 3 {
		t.Errorf("after a write: %+v, %v", r, err)
	}
	if err := os.Remove(v.path("f.ns")); err != nil {
		t.Fatal(err)
	}
	if r, err := v.recall("f.ns"); r != nil || err != nil {
		t.Errorf("after it is gone: %v, %v", r, err)
	}
}

func BenchmarkRecall(b *testing.B) {
	v := testVault(b)
	if err := v.write("f.ns", testRecord(1)); err != nil {
		b.Fatal(err)
	}
	settle(b, v)
	for b.Loop() {
		r, err := v.recall("f.ns")
		if err != nil {
			b.Fatal(err)
		}
		r.wipe()
	}
}
