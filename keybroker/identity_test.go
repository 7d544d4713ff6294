package keybroker_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestNothingOnDiskIsInPlaintextAndChangesAreNoticed(t *testing.T) {
	r := newRig(t)
	d := r.descriptor(1)
	r.mustDeposit(d)
	secrets := [][]byte{scalar(t, r.fn.Signer()), scalar(t, r.fn.Decrypter()), scalar(t, r.old.Decrypter()), pass}
	var vaultFile string
	err := filepath.WalkDir(r.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, s := range secrets {
			if bytes.Contains(b, s) {
				t.Errorf("%s holds secret %d", path, i)
			}
		}
		if info, _ := e.Info(); info.Mode().Perm()&0o077 != 0 && !strings.HasSuffix(path, ".pub") {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.HasSuffix(path, ".keys") {
			vaultFile = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		if bytes.Contains(r.log.Bytes(), s) {
			t.Error("the log holds a secret")
		}
	}
	good, err := os.ReadFile(vaultFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 4, 5, 20, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if err := os.WriteFile(vaultFile, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := r.ask("n1", r.sandbox(revision(t, d)), "n1")
		wantCode(t, err, api.CodeInternal)
	}
	// One function's file does not do for another.
	if err := os.Rename(vaultFile, filepath.Join(filepath.Dir(vaultFile), "other.openfaas-fn.keys")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.b.Functions(); err == nil {
		t.Error("a file moved to another name was read")
	}
}

func TestIdentityNeedsItsPassphrase(t *testing.T) {
	dir := t.TempDir()
	first, created, err := keybroker.OpenIdentity(dir, pass, rand.Reader)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	again, created, err := keybroker.OpenIdentity(dir, pass, rand.Reader)
	if err != nil || created || again.SigningKey() != first.SigningKey() || again.DecryptionKey() != first.DecryptionKey() {
		t.Fatal(created, err)
	}
	if _, _, err := keybroker.OpenIdentity(dir, []byte("wrong wrong"), rand.Reader); !errors.Is(err, unseal.ErrPassphrase) {
		t.Errorf("error %v", err)
	}
	_, _, err = keybroker.OpenIdentity(dir, []byte("short"), rand.Reader)
	wantCode(t, err, api.CodeInvalid)
}

func TestInsecurePassphraseIsKeptAndGuarded(t *testing.T) {
	dir := t.TempDir()
	a, err := keybroker.InsecurePassphrase(dir, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := keybroker.InsecurePassphrase(dir, rand.Reader)
	if err != nil || !bytes.Equal(a, b) || len(a) < 32 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if err := os.Chmod(filepath.Join(dir, "passphrase.insecure"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = keybroker.InsecurePassphrase(dir, rand.Reader)
	wantCode(t, err, api.CodeInvalid)
}
