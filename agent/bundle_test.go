package agent

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// entry is one of a test bundle's tar.
type entry struct {
	name, body, link string
	kind             byte
	mode             int64
}

func tarOf(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o644
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, ModTime: time.Unix(1e9, 0)}
		if e.kind == tar.TypeReg {
			h.Size = int64(len(e.body))
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := tw.Write([]byte(e.body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func envOf(t *testing.T, m map[string]string) string {
	t.Helper()
	mode := must[cbor.EncMode](t)(cbor.CoreDetEncOptions().EncMode())
	return string(must[[]byte](t)(mode.Marshal(m)))
}

// bundled makes a world whose function comes with the entries. The directories
// are the sandbox's tmpfs of the function's user.
func bundled(t *testing.T, entries []entry, edit func(*world)) *world {
	t.Helper()
	archive := tarOf(t, entries)
	var nonce [sealed.BundleNonce]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		t.Fatal(err)
	}
	digest, _, err := sealed.BundleDigest(&nonce, bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	needRoot(t)
	dir := must[string](t)(os.MkdirTemp("", "agent-bundle-")) // t.TempDir is closed to other users
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, d := range []string{"", "code", "secrets"} {
		p := filepath.Join(dir, d)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if d != "" {
			if err := os.Chown(p, testUID, testGID); err != nil {
				t.Fatal(err)
			}
		}
	}
	w := newWorld(t, func(w *world) {
		w.cfg.SecretsDir = filepath.Join(dir, "secrets")
		w.desc.Config.Bundle, w.desc.Config.BundleMount = digest, filepath.Join(dir, "code")
		if edit != nil {
			edit(w)
		}
	})
	w.plain = append(nonce[:], archive...)
	w.bundle = w.sealBundle(w.plain)
	return w
}

func (w *world) sealBundle(body []byte) []byte {
	w.t.Helper()
	now := time.Now()
	g := must[*sealed.Grant](w.t)(sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleBundle, Recipient: w.desc.Decryption[0].Key,
		Sender: w.owner.Signer(), Context: w.revision, Name: w.desc.FullName(), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(90 * 24 * time.Hour)}))
	defer g.Release()
	return must[[]byte](w.t)(g.Append(nil, sealed.MessageParams{Issued: now}, body))
}

func TestBundleBringsCodeEnvironmentAndSecrets(t *testing.T) {
	w := bundled(t, []entry{
		{name: "code/", kind: tar.TypeDir, mode: 0o755},
		{name: "code/run.sh", body: "#!/bin/sh\necho \"$GREETING from $(pwd) $(cat lib/data) $(cat \"$SECRETS/token\") $IMAGE_ONLY $BOTH\"\n", mode: 0o755},
		{name: "code/lib/data", body: strings.Repeat("d", 10)},
		{name: "code/lib/link", kind: tar.TypeSymlink, link: "../run.sh"},
		{name: "env", body: envOf(t, map[string]string{"GREETING": "hello", "BOTH": "bundle"})},
		{name: "secrets/token", body: "s3cret"},
	}, nil)
	w.image.Env = []string{"IMAGE_ONLY=image", "BOTH=image", "SECRETS=" + w.cfg.SecretsDir}
	w.desc.Config.Mode, w.desc.Config.Argv = sealed.ModeSerializing, []string{"./run.sh"}
	resign(w)
	w.bundle = reseal(w)
	w.start()
	if _, body := w.get("/", ""); body != "hello from "+w.desc.Config.BundleMount+" dddddddddd s3cret image bundle\n" {
		t.Errorf("%q", body)
	}
	st := must[os.FileInfo](t)(os.Stat(filepath.Join(w.cfg.SecretsDir, "token")))
	if st.Mode().Perm() != 0o400 {
		t.Errorf("the secret's mode is %v", st.Mode())
	}
	st = must[os.FileInfo](t)(os.Stat(filepath.Join(w.desc.Config.BundleMount, "run.sh")))
	if !st.ModTime().Equal(time.Unix(1e9, 0)) {
		t.Errorf("modified %v", st.ModTime())
	}
}

// resign signs the descriptor again after it was edited.
func resign(w *world) {
	w.t.Helper()
	w.signed = must[[]byte](w.t)(w.desc.Sign(rand.Reader, w.owner.Signer()))
	w.revision = must[sealed.Digest](w.t)(w.desc.Revision())
}

// reseal seals the same bundle for the revision as it is now.
func reseal(w *world) []byte {
	w.t.Helper()
	return w.sealBundle(w.plain)
}

func TestBundlesThatReachOutAreRefused(t *testing.T) {
	for name, entries := range map[string][]entry{
		"absolute":            {{name: "/etc/x", body: "x"}},
		"dot dot":             {{name: "code/../../x", body: "x"}},
		"dot dot at the top":  {{name: "../x", body: "x"}},
		"link out":            {{name: "code/l", kind: tar.TypeSymlink, link: "../../etc"}},
		"absolute link":       {{name: "code/l", kind: tar.TypeSymlink, link: "/etc/passwd"}},
		"hard link out":       {{name: "code/l", kind: tar.TypeLink, link: "secrets/token"}},
		"device":              {{name: "code/d", kind: tar.TypeChar}},
		"fifo":                {{name: "code/d", kind: tar.TypeFifo}},
		"twice":               {{name: "code/a", body: "1"}, {name: "code/a", body: "2"}},
		"unknown":             {{name: "else/a", body: "1"}},
		"nested secret":       {{name: "secrets/a/b", body: "1"}},
		"linked secret":       {{name: "secrets/a", kind: tar.TypeSymlink, link: "b"}},
		"env not CBOR":        {{name: "env", body: "A=b"}},
		"env with a bad name": {{name: "env", body: "\xa1\x63A=B\x61c"}},
		"through a link":      {{name: "code/l", kind: tar.TypeSymlink, link: "."}, {name: "code/l/../../y", body: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := bundled(t, entries, nil)
			w.run()
			w.node.wait("failure", func(n *testNode) bool { return n.failed != nil })
			if f := w.node.failed; f.Code != api.CodeStartFailed || f.Field != "bundle" {
				t.Errorf("%+v", f)
			} else if strings.Contains(f.Detail, entries[0].name) {
				t.Errorf("the node was told a file's name: %s", f.Detail)
			}
			w.node.wait("the reason in the owner's log", func(n *testNode) bool { return n.logged(streamPlatform, "cause: ") })
			if _, err := os.Stat(filepath.Join(w.desc.Config.BundleMount, "..", "x")); err == nil {
				t.Error("a file was written outside")
			}
		})
	}
}

func TestBundleOfAnotherDigestNeverRuns(t *testing.T) {
	marker := filepath.Join(os.TempDir(), "agent-bundle-ran")
	w := bundled(t, []entry{{name: "code/run.sh", body: "#!/bin/sh\ntouch " + marker + "\n", mode: 0o755}}, func(w *world) {
		w.desc.Config.Mode, w.desc.Config.Argv = sealed.ModeHTTP, []string{"./run.sh"}
	})
	w.bundle = w.sealBundle(append(make([]byte, sealed.BundleNonce), tarOf(t, []entry{{name: "code/other", body: "x"}})...))
	w.run()
	w.node.wait("failure", func(n *testNode) bool { return n.failed != nil })
	if f := w.node.failed; f.Code != api.CodeStaleRevision || !strings.Contains(f.Detail, "digest") {
		t.Errorf("%+v", f)
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("it ran")
		os.Remove(marker)
	}
}

func TestBundleOfAFewBytesIsRefusedByCode(t *testing.T) {
	w := bundled(t, []entry{{name: "code/a", body: "x"}}, nil)
	w.bundle = w.sealBundle(make([]byte, sealed.BundleNonce-1))
	w.run()
	w.node.wait("failure", func(n *testNode) bool { return n.failed != nil })
	if f := w.node.failed; f.Code != api.CodeStartFailed || !strings.HasSuffix(f.Detail, ": "+string(sealed.CodeFormat)) {
		t.Errorf("%+v", f)
	}
}

func TestBundleOfAStrangerOrOldRevisionIsRefused(t *testing.T) {
	w := bundled(t, []entry{{name: "code/a", body: "x"}}, nil)
	owner := w.owner
	w.owner = w.caller
	w.bundle = reseal(w)
	w.owner = owner
	w.run()
	w.node.wait("failure", func(n *testNode) bool { return n.failed != nil })
	if !strings.Contains(w.node.failed.Detail, "sender") {
		t.Errorf("%+v", w.node.failed)
	}
}

func TestEnvironmentHasOneEncoding(t *testing.T) {
	for name, b := range map[string]string{
		"keys out of order": "\xa2\x61b\x61a\x61a\x612", "a long length": "\xb9\x00\x01\x61a\x611", "a long text": "\xa1\x78\x01a\x611",
		"null": "\xf6", "a null value": "\xa1\x61a\xf6",
	} {
		if env, err := decodeEnv([]byte(b)); err == nil {
			t.Errorf("%s: taken as %v", name, env)
		}
	}
	if env, err := decodeEnv([]byte("\xa2\x61a\x611\x61b\x612")); err != nil || len(env) != 2 {
		t.Errorf("%v, %v", env, err)
	}
}
