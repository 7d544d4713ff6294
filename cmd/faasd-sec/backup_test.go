package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/store"
)

// coordinatorOn is a coordinator's state with a store and its operator's socket.
func coordinatorOn(t *testing.T, dir string) {
	t.Helper()
	if _, err := enrol.Init(dir, []string{"any"}, rand.Reader); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.DefaultConfig(filepath.Join(dir, "etcd"), slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ln, err := net.Listen("unix", filepath.Join(dir, enrol.AdminSocket))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		snapshot, err := s.Snapshot(r.Context())
		if err != nil {
			t.Error(err)
			return
		}
		defer snapshot.Close()
		io.Copy(w, snapshot)
	})}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
}

func TestASealedArchiveIsRestoredByWhomItIsFor(t *testing.T) {
	dir, err := os.MkdirTemp("", "fsb-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	state, archive := filepath.Join(dir, "c"), filepath.Join(dir, "cluster.fsb")
	coordinatorOn(t, state)
	s, stranger := newShell(t, "http://127.0.0.1:1"), newShell(t, "http://127.0.0.1:1")
	for _, who := range []*shell{s, stranger} {
		who.must("", "key", "new")
	}
	var keys []struct{ Decryption string }
	if err := json.Unmarshal([]byte(s.must("", "key", "list", "-o", "json")), &keys); err != nil || len(keys) != 1 {
		t.Fatalf("%v %v", keys, err)
	}
	parts := func(at string) []string { return []string{"--state", filepath.Join(dir, at), "--keybroker", ""} }
	s.must("", append([]string{"backup", archive, "--to", keys[0].Decryption}, parts("c")...)...)
	b, err := os.ReadFile(archive)
	if err != nil || bytes.Contains(b, []byte("PRIVATE KEY")) || bytes.Contains(b, []byte("gossip_keys")) {
		t.Fatalf("the archive can be read: %v", err)
	}
	if code, _, errs := s.run("", append([]string{"backup", archive}, parts("c")...)...); code == 0 || !strings.Contains(errs, "already") {
		t.Errorf("over an archive: exit %d, %s", code, errs)
	}
	if code, _, errs := stranger.run("", append([]string{"restore", archive}, parts("s")...)...); code == 0 || !strings.Contains(errs, "not for this identity") {
		t.Errorf("a stranger: exit %d, %s", code, errs)
	}
	cut := s.file(filepath.Join(dir, "cut.fsb"), string(b[:len(b)-64]))
	if code, _, errs := s.run("", append([]string{"restore", cut}, parts("t")...)...); code != exitNotGenuine || !strings.Contains(errs, "field: FILE") {
		t.Errorf("an archive without its end: exit %d, %s", code, errs)
	}
	var cl enrol.Cluster
	if err := enrol.Load(filepath.Join(dir, "t"), enrol.ClusterFile, "", &cl); err == nil {
		t.Error("it left a coordinator")
	}
	out := s.must("", append([]string{"restore", archive}, parts("r")...)...)
	if err := enrol.Load(filepath.Join(dir, "r"), enrol.ClusterFile, "", &cl); err != nil || !strings.Contains(out, cl.ID) {
		t.Errorf("%s, %v", out, err)
	}
	// Not sealed it is a plain tar, for its user alone, with a word of warning.
	plain := filepath.Join(dir, "cluster.tar")
	if code, _, errs := s.run("", append([]string{"backup", plain}, parts("c")...)...); code != 0 || !strings.Contains(errs, "authority in clear") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if st, err := os.Stat(plain); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	// Who names a maker wants a signature.
	from := append([]string{"restore", plain, "--from", strings.Repeat("ab", 32)}, parts("u")...)
	if code, _, errs := s.run("", from...); code != exitRefused || !strings.Contains(errs, "not sealed") {
		t.Errorf("a clear archive with a maker: exit %d, %s", code, errs)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
