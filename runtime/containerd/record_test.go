package containerd

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/faasd-sec/faasd-sec/runtime"
)

func TestATornRecordSaysWhatTheSandboxWas(t *testing.T) {
	r := &Runtime{cfg: Config{RunDir: t.TempDir()}}
	if err := os.Mkdir(filepath.Join(r.cfg.RunDir, "sandboxes"), 0o700); err != nil {
		t.Fatal(err)
	}
	blank := record{ID: "x", SocketDir: "/sock/x"}
	if err := r.writeRecord(blank); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.dir("x"), "record")
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.openRecord("x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	bound := blank
	bound.Labels, bound.Image = map[string]string{labelSandbox: "x", labelFunction: "f.team"}, "sha256:ab"
	if err := appendRecord(f, bound); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := len(first); n <= len(whole); n++ {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := r.readRecord("x")
		if err != nil || got.ID != "x" || got.SocketDir != "/sock/x" {
			t.Fatalf("%d of %d bytes: %+v, %v", n, len(whole), got, err)
		}
		if is := got.Labels != nil && got.Image != ""; is != (n == len(whole)) {
			t.Errorf("%d of %d bytes: bound: %v", n, len(whole), is)
		}
	}
}

func TestARecordOfOneLineIsRead(t *testing.T) {
	want := record{ID: "x", SocketDir: "/sock/x", Labels: map[string]string{labelSandbox: "x"}, Image: "sha256:ab"}
	b, err := json.Marshal(want) // as releases wrote it that replaced the file
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseRecord(b); err != nil || got.Image != want.Image || got.Labels[labelSandbox] != "x" {
		t.Errorf("%+v, %v", got, err)
	}
	other := append(append(b, '\n'), []byte(`{"id":"y","image":"sha256:cd"}`+"\n")...)
	if got, err := parseRecord(other); err != nil || got.ID != "x" || got.Image != want.Image {
		t.Errorf("with another sandbox's line: %+v, %v", got, err)
	}
	for _, bad := range []string{"{", "\n", `{"id":"x"` + "\n{}\n"} {
		if got, err := parseRecord([]byte(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, got)
		}
	}
}

// A disk may lose what was written last.
func TestADamagedRecordKeepsNobodyFromStarting(t *testing.T) {
	b := need(t)
	cfg := b.config(t)
	r := b.openWith(t, cfg)
	img := b.basic(t, r)
	stays, _ := b.start(t, r, b.spec(t, r, img))
	bound, a := b.bind(t, r, b.spec(t, r, img))
	if err := a.Launch("/bin/fn", "say"); err != nil {
		t.Fatal(err)
	}
	dead := "never-made"
	if err := os.Mkdir(r.dir(dead), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{stays.ID(), bound.ID(), dead} {
		if err := os.WriteFile(filepath.Join(r.dir(id), "record"), []byte("\x00\x00\x00"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r = b.openWith(t, cfg)
	found, err := r.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, s := range found {
		ids[s.ID()] = true
	}
	if !ids[stays.ID()] { // containerd has all that is to be known of it
		t.Errorf("recovered %v, and not %s", ids, stays.ID())
	}
	if _, err := os.Lstat(r.dir(dead)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dead, err)
	}
}

// A daemon may be killed between the record of a bind and what containerd hears
// of it: the record alone gives the sandbox back.
func TestABoundSandboxIsGivenBackByItsRecord(t *testing.T) {
	b := need(t)
	cfg := b.config(t)
	r := b.openWith(t, cfg)
	spec := b.spec(t, r, b.basic(t, r))
	spec.Function, spec.Revision = "greet.team", "abcdef"
	s, _ := b.bind(t, r, spec)
	waiting, _ := b.blank(t, r, b.spec(t, r, b.basic(t, r)))
	half, _ := b.blank(t, r, b.spec(t, r, b.basic(t, r))) // whose record was torn
	box := half.(*Sandbox)
	rec := box.record()
	rec.Labels, rec.Image = s.(*Sandbox).labels(), spec.Image.Digest
	torn, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := box.handles.record.Write(torn); err != nil {
		t.Fatal(err)
	}
	<-s.(*Sandbox).settled
	// What it would be like, had settle not come to it.
	ctx, cancel := r.call(r.life)
	defer cancel()
	unsettled := s.(*Sandbox)
	if err := r.deleteLease(ctx, s.ID()); err != nil {
		t.Fatal(err)
	}
	now := unsettled.Info()
	unsettled.mu.Lock()
	unsettled.info.Blank = true
	unsettled.mu.Unlock()
	if err := r.relabel(ctx, unsettled); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = b.openWith(t, cfg)
	found, err := r.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].ID() != s.ID() {
		t.Fatalf("%d sandboxes were given back, want %s and neither %s nor %s", len(found), s.ID(), waiting.ID(), half.ID())
	}
	now.Blank = false
	if got := found[0].Info(); !same(got, now) {
		t.Errorf("given back as %+v, was %+v", got, now)
	}
	if err := found[0].Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

func same(a, b runtime.Info) bool {
	if !a.CreatedAt.Equal(b.CreatedAt) {
		return false
	}
	a.CreatedAt = b.CreatedAt
	return a == b
}
