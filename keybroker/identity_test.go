package keybroker_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// A broker that is killed while it makes its identity begins again at its next start,
// whichever files it had written, and keeps an identity that was whole.
func TestIdentityThatWasLeftHalfMadeIsCompleted(t *testing.T) {
	made := t.TempDir()
	first, _, err := keybroker.OpenIdentity(made, pass, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		whole, empty []string
		kept         bool
	}{
		"signing key begun":       {empty: []string{"broker.sign.pem"}},
		"signing key alone":       {whole: []string{"broker.sign.pem"}},
		"decryption key begun":    {whole: []string{"broker.sign.pem"}, empty: []string{"broker.decrypt.pem"}},
		"both private keys":       {whole: []string{"broker.sign.pem", "broker.decrypt.pem"}, kept: true},
		"public keys begun":       {whole: []string{"broker.sign.pem", "broker.decrypt.pem"}, empty: []string{"broker.pub"}, kept: true},
		"all but the storage key": {whole: []string{"broker.sign.pem", "broker.decrypt.pem", "broker.pub"}, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, file := range append(c.whole, c.empty...) {
				b, err := os.ReadFile(filepath.Join(made, file))
				if err != nil {
					t.Fatal(err)
				}
				if slices.Contains(c.empty, file) {
					b = nil
				}
				if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			id, created, err := keybroker.OpenIdentity(dir, pass, rand.Reader)
			if err != nil || !created {
				t.Fatal(created, err)
			}
			if kept := id.SigningKey() == first.SigningKey() && id.DecryptionKey() == first.DecryptionKey(); kept != c.kept {
				t.Errorf("keys kept: %t", kept)
			}
			if again, _, err := keybroker.OpenIdentity(dir, pass, rand.Reader); err != nil || again.SigningKey() != id.SigningKey() {
				t.Errorf("the next start: %v", err)
			}
		})
	}
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
