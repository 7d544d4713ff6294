package opener

import (
	"bytes"
	"crypto/hkdf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

const (
	rootFile      = "root.pem" // an SM2 key that only serves to derive the three below
	identityInfo  = "faasd-sec/v1 manifest-opener identity"
	storageInfo   = "faasd-sec/v1 manifest-opener storage"
	keyFilesInfo  = "faasd-sec/v1 manifest-opener keys"
	minPassphrase = 8 // bytes
	insecureFile  = "passphrase.insecure"
)

// loadRoot derives the storage keys into p from the root key in dir, which is
// PKCS#8 encrypted under passphrase, and drawn where there is none yet.
func loadRoot(dir string, passphrase []byte, random io.Reader, p *page) error {
	if len(passphrase) < minPassphrase {
		return api.Invalid("passphrase", "choose a longer one, or let a credential store draw it",
			fmt.Sprintf("%d bytes, at least %d are wanted", len(passphrase), minPassphrase))
	}
	path := filepath.Join(dir, rootFile)
	pem, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		pem, err = createRoot(path, passphrase, random)
	}
	if err != nil {
		return fmt.Errorf("manifest opener: root key: %w", err)
	}
	k, err := unseal.DecodeKey(pem, passphrase)
	if err != nil {
		return fmt.Errorf("manifest opener: root key in %s: %w", path, err)
	}
	defer k.Wipe()
	scalar := k.Scalar()
	defer clear(scalar)
	for info, dst := range map[string][]byte{storageInfo: p.storage(), keyFilesInfo: p.keyFiles(), identityInfo: p.identity()} {
		key, err := hkdf.Key(sm3.New, scalar, nil, info, len(dst))
		if err != nil {
			return fmt.Errorf("manifest opener: derive a key: %w", err)
		}
		copy(dst, key)
		clear(key)
	}
	return nil
}

func createRoot(path string, passphrase []byte, random io.Reader) ([]byte, error) {
	k, err := unseal.NewKey(random)
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	pem, err := unseal.EncodeKey(k, passphrase, unseal.KeyFileOptions{})
	if err != nil {
		return nil, err
	}
	return pem, writeFile(path, pem)
}

// InsecurePassphrase returns a passphrase kept in a file (mode 0600) beside the
// keys it encrypts, drawn at the first call. It serves development, where an
// opener must start without being asked.
func InsecurePassphrase(dir string, random io.Reader) ([]byte, error) {
	path := filepath.Join(dir, insecureFile)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("manifest opener: passphrase: %w", err)
		}
		var raw [24]byte
		if _, err := io.ReadFull(random, raw[:]); err != nil {
			return nil, fmt.Errorf("manifest opener: draw a passphrase: %w", err)
		}
		text := []byte(hex.EncodeToString(raw[:]))
		return text, writeFile(path, text)
	case err != nil:
		return nil, fmt.Errorf("manifest opener: passphrase: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return nil, api.Invalid("passphrase file", "chmod 600 "+path, fmt.Sprintf("%s has mode %04o: others can read it", path, info.Mode().Perm()))
	}
	return ReadPassphrase(path)
}

// ReadPassphrase reads a file, without the newline at its end.
func ReadPassphrase(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("manifest opener: passphrase: %w", err)
	}
	return bytes.TrimRight(b, "\r\n"), nil
}

// writeFile replaces path by way of a temporary file, mode 0600, with both the
// file and its directory flushed to the disk.
func writeFile(path string, b []byte) (retErr error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".*.tmp")
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(fmt.Errorf("write %s: %w", path, retErr), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
