package unseal_test

import (
	"bytes"
	"crypto/rand"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestKeyFileOpensWithItsPassphraseAlone(t *testing.T) {
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, prf := range []unseal.PRF{"", unseal.PRFSM3, unseal.PRFSHA256} {
		file, err := unseal.EncodeKey(k, []byte("right"), unseal.KeyFileOptions{PRF: prf})
		if err != nil {
			t.Fatal(err)
		}
		back, err := unseal.DecodeKey(file, []byte("right"))
		if err != nil || back.PublicKey() != k.PublicKey() || !bytes.Equal(back.Scalar(), k.Scalar()) {
			t.Fatal(prf, err)
		}
		for _, wrong := range []string{"", "wrong", "right "} {
			if _, err := unseal.DecodeKey(file, []byte(wrong)); !errors.Is(err, unseal.ErrPassphrase) {
				t.Errorf("%s: %q: %v", prf, wrong, err)
			}
		}
	}
	for name, opts := range map[string]unseal.KeyFileOptions{
		"too few":  {Iterations: unseal.MinIterations - 1},
		"too many": {Iterations: unseal.MaxIterations + 1},
		"no PRF":   {PRF: "md5"},
	} {
		if _, err := unseal.EncodeKey(k, []byte("x"), opts); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := unseal.EncodeKey(k, nil, unseal.KeyFileOptions{}); err == nil {
		t.Error("an empty passphrase was taken")
	}
}

// TestKeyFileParametersAreJudgedFirst: a file must not make its reader work for
// minutes, nor be protected by less than is promised.
func TestKeyFileParametersAreJudgedFirst(t *testing.T) {
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file, err := unseal.EncodeKey(k, []byte("x"), unseal.KeyFileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(file)
	count, err := asn1.Marshal(unseal.MinIterations)
	if err != nil {
		t.Fatal(err)
	}
	sm3OID, _ := asn1.Marshal(asn1.ObjectIdentifier{1, 2, 156, 10197, 1, 401, 2})
	sm4OID, _ := asn1.Marshal(asn1.ObjectIdentifier{1, 2, 156, 10197, 1, 104, 2})
	for name, change := range map[string][2][]byte{
		"few iterations": {count, []byte{2, 3, 0x00, 0x86, 0x9f}},
		"another PRF":    {sm3OID, append(bytes.Clone(sm3OID[:len(sm3OID)-1]), 9)},
		"another cipher": {sm4OID, append(bytes.Clone(sm4OID[:len(sm4OID)-1]), 1)},
	} {
		if !bytes.Contains(block.Bytes, change[0]) || len(change[0]) != len(change[1]) {
			t.Fatalf("%s: nothing to change", name)
		}
		bad := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: bytes.Replace(block.Bytes, change[0], change[1], 1)})
		if _, err := unseal.DecodeKey(bad, []byte("x")); err == nil || errors.Is(err, unseal.ErrPassphrase) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, bad := range map[string][]byte{
		"nothing":        nil,
		"no PEM":         []byte("hello"),
		"plain key":      pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: block.Bytes}),
		"two blocks":     append(bytes.Clone(file), file...),
		"bytes after":    pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: append(bytes.Clone(block.Bytes), 0)}),
		"cut":            pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes[:len(block.Bytes)-1]}),
		"far too long":   bytes.Repeat([]byte("a"), 10_000),
		"empty sequence": pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: []byte{0x30, 0}}),
	} {
		if _, err := unseal.DecodeKey(bad, []byte("x")); err == nil || errors.Is(err, unseal.ErrPassphrase) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenSSLReadsExportedKeys: the sha256 form is for it.
func TestOpenSSLReadsExportedKeys(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file, err := unseal.EncodeKey(k, []byte("pass"), unseal.KeyFileOptions{PRF: unseal.PRFSHA256})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "k.pem")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(openssl, "pkey", "-in", path, "-passin", "pass:pass", "-pubout", "-outform", "DER")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl: %v", err)
	}
	if !bytes.Equal(out, k.PublicKey().SPKI()) {
		t.Fatalf("openssl reads the public key %x, want %x", out, k.PublicKey().SPKI())
	}
}

func TestKeystoreKeepsIdentities(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := unseal.OpenKeystore(dir)
	if err != nil {
		t.Fatal(err)
	}
	id, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Save("alice", id, []byte("pw"), unseal.KeyFileOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Save("alice", id, []byte("pw"), unseal.KeyFileOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("overwritten: %v", err)
	}
	if names, err := s.List(); err != nil || len(names) != 1 || names[0] != "alice" {
		t.Fatal(names, err)
	}
	sign, decrypt, err := s.Public("alice")
	if err != nil || sign != id.SigningKey() || decrypt != id.DecryptionKey() {
		t.Fatal(err)
	}
	back, err := s.Load("alice", []byte("pw"))
	if err != nil || back.SigningKey() != sign || back.DecryptionKey() != decrypt {
		t.Fatal(err)
	}
	if _, err := s.Load("alice", []byte("no")); !errors.Is(err, unseal.ErrPassphrase) {
		t.Fatal(err)
	}
	if _, err := s.Load("bob", []byte("pw")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Fatal(len(files), err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "alice.sign.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("alice", []byte("pw")); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key file that others may read was loaded: %v", err)
	}
	for _, name := range []string{"", "../x", "a/b", ".hidden", "a..b", strings.Repeat("a", 65)} {
		if err := s.Save(name, id, []byte("pw"), unseal.KeyFileOptions{}); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
}

func TestOneKeyIsNotBoth(t *testing.T) {
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unseal.IdentityOf(k, k); err == nil {
		t.Error("one key for both was taken")
	}
	if _, err := unseal.IdentityFromScalars(k.Scalar(), k.Scalar()); err == nil {
		t.Error("one scalar for both was taken")
	}
	for _, bad := range [][]byte{nil, make([]byte, 31), make([]byte, 32), bytes.Repeat([]byte{0xff}, 32)} {
		if _, err := unseal.KeyFromScalar(bad); err == nil {
			t.Errorf("scalar %x was taken", bad)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	w := newWorld(t)
	k := w.caller.Signer()
	_, _, link := w.request(t, w.requestGrant(t), 0, nil)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		for _, v := range []any{k, link, &link} {
			text := fmt.Sprintf(format, v)
			if strings.Contains(text, fmt.Sprintf("%x", k.Scalar())[:16]) || strings.Contains(text, fmt.Sprintf("%x", link[:4])) {
				t.Errorf("%s prints %s", format, text)
			}
		}
	}
	if _, err := link.MarshalText(); err == nil {
		t.Error("a link went into a document")
	}
}

func FuzzDecodeKey(f *testing.F) {
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	file, err := unseal.EncodeKey(k, []byte("x"), unseal.KeyFileOptions{})
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(file)
	f.Add(block.Bytes)
	f.Fuzz(func(t *testing.T, der []byte) {
		// Most inputs fail before PBKDF2; those that reach it are slow, and few.
		got, err := unseal.DecodeKey(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}), []byte("x"))
		if (got == nil) != (err != nil) {
			t.Fatal(got, err)
		}
	})
}
