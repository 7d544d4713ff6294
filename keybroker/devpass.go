package keybroker

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/faasd-sec/faasd-sec/api"
)

const devPassphraseFile = "passphrase.insecure"

// InsecurePassphrase returns a passphrase that is kept in a file (mode 0600)
// beside the keys it encrypts, drawn at the first call. It protects against
// nothing but other users of the machine: it serves development, where a broker
// must start without being asked.
func InsecurePassphrase(dir string, random io.Reader) ([]byte, error) {
	path := filepath.Join(dir, devPassphraseFile)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return newInsecurePassphrase(dir, path, random)
	case err != nil:
		return nil, fmt.Errorf("keybroker: passphrase: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return nil, api.Invalid("passphrase file", "chmod 600 "+path, fmt.Sprintf("%s has mode %04o: others can read it", path, info.Mode().Perm()))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("keybroker: passphrase: %w", err)
	}
	return b, nil
}

func newInsecurePassphrase(dir, path string, random io.Reader) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keybroker: passphrase: %w", err)
	}
	var raw [24]byte
	if _, err := io.ReadFull(random, raw[:]); err != nil {
		return nil, fmt.Errorf("keybroker: draw a passphrase: %w", err)
	}
	text := []byte(hex.EncodeToString(raw[:]))
	return text, writeFile(path, text)
}
