package keybroker

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/emmansun/gmsm/sm4"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	vaultMagic  = "FSKB\x01"
	vaultSuffix = ".keys"
	maxRecord   = 1 << 20 // bytes of one file
)

// vault keeps one encrypted file per function:
//
//	"FSKB" 01 || 12-byte nonce || SM4-GCM(record), AAD = "FSKB" 01 || name
//
// Nonces are random; one key would have to write 2^32 files before a repeat
// became likely. A file is replaced as a whole or not at all.
type vault struct {
	dir    string
	aead   cipher.AEAD
	random io.Reader
	mu     sync.RWMutex // held for writing from reading a record to replacing it

	seenMu sync.Mutex
	seen   map[api.FunctionName]seenFile
}

func openVault(dir string, key []byte, random io.Reader) (*vault, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keybroker: vault: %w", err)
	}
	block, err := sm4.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("keybroker: vault: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("keybroker: vault: %w", err)
	}
	v := &vault{dir: dir, aead: aead, random: random}
	return v, v.sweep()
}

// sweep removes what an interrupted write left behind.
func (v *vault) sweep() error {
	for _, dir := range []string{v.dir, filepath.Join(v.dir, secretsDir, "*")} {
		left, err := filepath.Glob(filepath.Join(dir, ".*.tmp"))
		if err != nil {
			return fmt.Errorf("keybroker: vault: %w", err)
		}
		for _, path := range left {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("keybroker: vault: %w", err)
			}
		}
	}
	return nil
}

// path is safe for any api.FunctionName: no separator, no leading dot, and at
// most 127 bytes.
func (v *vault) path(name api.FunctionName) string {
	return filepath.Join(v.dir, string(name)+vaultSuffix)
}

// read returns the record of name, or nil when there is none. The caller holds
// the lock and wipes the record.
func (v *vault) read(name api.FunctionName) (*record, error) {
	b, _, err := v.load(name)
	if b == nil || err != nil {
		return nil, err
	}
	return v.decode(name, b)
}

// load returns the bytes of name's file, nil when there is none.
func (v *vault) load(name api.FunctionName) ([]byte, fileID, error) {
	f, err := os.Open(v.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fileID{}, nil
	} else if err != nil {
		return nil, fileID{}, fmt.Errorf("keybroker: vault: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fileID{}, fmt.Errorf("keybroker: vault: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return nil, fileID{}, fmt.Errorf("keybroker: vault: %w", err)
	}
	return b, idOf(&st), nil
}

func (v *vault) decode(name api.FunctionName, b []byte) (*record, error) {
	plain, err := v.open(name, b)
	if err != nil {
		return nil, fmt.Errorf("keybroker: vault: %s: %w", name, err)
	}
	defer clear(plain)
	return decodeRecord(plain)
}

func (v *vault) open(name api.FunctionName, b []byte) ([]byte, error) {
	n := len(vaultMagic) + v.aead.NonceSize()
	if len(b) < n || len(b) > maxRecord || string(b[:len(vaultMagic)]) != vaultMagic {
		return nil, errors.New("not a file of this version")
	}
	plain, err := v.aead.Open(nil, b[len(vaultMagic):n], b[n:], aad(name))
	if err != nil {
		return nil, errors.New("the file was changed, or belongs to another broker or function")
	}
	return plain, nil
}

// write replaces the record of name; when it returns nil, the record survives a
// loss of power. The caller holds the lock.
func (v *vault) write(name api.FunctionName, r *record) error {
	plain, err := r.encode()
	if err != nil {
		return err
	}
	defer clear(plain)
	b := append([]byte(vaultMagic), make([]byte, v.aead.NonceSize())...)
	nonce := b[len(vaultMagic):]
	if _, err := io.ReadFull(v.random, nonce); err != nil {
		return fmt.Errorf("keybroker: vault: draw a nonce: %w", err)
	}
	v.seenMu.Lock()
	delete(v.seen, name) // also where the write fails half way
	v.seenMu.Unlock()
	b = v.aead.Seal(b, nonce, plain, aad(name))
	if err := writeFile(v.path(name), b); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(v.path(name), &st); err == nil && st.Size == int64(len(b)) {
		v.keep(name, idOf(&st), b)
	}
	return nil
}

func aad(name api.FunctionName) []byte { return []byte(vaultMagic + string(name)) }

// names lists the functions with a file.
func (v *vault) names() ([]api.FunctionName, error) {
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		return nil, fmt.Errorf("keybroker: vault: %w", err)
	}
	var out []api.FunctionName
	for _, e := range entries {
		if n, ok := strings.CutSuffix(e.Name(), vaultSuffix); ok {
			out = append(out, api.FunctionName(n))
		}
	}
	return out, nil
}

// writeFile replaces path by way of a temporary file, mode 0600, with both the
// file and its directory flushed to the disk.
func writeFile(path string, b []byte) (retErr error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".*.tmp")
	if err != nil {
		return fmt.Errorf("keybroker: write: %w", err)
	}
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("keybroker: write %s: %w", path, retErr)
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
