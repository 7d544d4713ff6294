package unseal

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	signSuffix    = ".sign.pem"
	decryptSuffix = ".decrypt.pem"
	pubSuffix     = ".pub"
)

// Keystore is a directory of identities: NAME.sign.pem and NAME.decrypt.pem, mode
// 0600, encrypted; NAME.pub, the public signing key and the public decryption
// key in hex, one line each.
type Keystore struct {
	dir string
}

// OpenKeystore opens dir, made with mode 0700 if absent.
func OpenKeystore(dir string) (*Keystore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("unseal: keystore: %w", err)
	}
	return &Keystore{dir: dir}, nil
}

// checkName keeps names from leaving the directory.
func checkName(name string) error {
	ok := name != "" && len(name) <= 64 && name[0] != '.' && !strings.Contains(name, "..")
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' || c == '@')
	}
	if !ok {
		return fmt.Errorf("unseal: keystore: name %q: want 1..64 letters, digits, and - _ . @ inside", name)
	}
	return nil
}

// Save writes an identity; it never overwrites one (fs.ErrExist). Where one file
// cannot be written, those written before are removed.
func (s *Keystore) Save(name string, id *Identity, passphrase []byte, opts KeyFileOptions) (retErr error) {
	if err := checkName(name); err != nil {
		return err
	}
	sign, err := EncodeKey(id.sign, passphrase, opts)
	if err != nil {
		return err
	}
	decrypt, err := EncodeKey(id.decrypt, passphrase, opts)
	if err != nil {
		return err
	}
	pub := id.SigningKey().String() + "\n" + id.DecryptionKey().String() + "\n"
	var written []string
	defer func() {
		if retErr != nil {
			for _, path := range written {
				os.Remove(path)
			}
		}
	}()
	for _, f := range []struct {
		suffix string
		data   []byte
	}{{signSuffix, sign}, {decryptSuffix, decrypt}, {pubSuffix, []byte(pub)}} {
		path := filepath.Join(s.dir, name+f.suffix)
		if err := writeNew(path, f.data); err != nil {
			return fmt.Errorf("unseal: keystore: save %s: %w", name, err)
		}
		written = append(written, path)
	}
	return nil
}

// writeNew writes a file that does not exist yet, to the disk, with mode 0600.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

// DropHalf removes what a Save that was killed left of an identity: one private
// key without the other, or one that was never written whole. It leaves a whole
// identity as it is. Only for a name that nobody can have used yet.
func (s *Keystore) DropHalf(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	whole := true
	for _, suffix := range []string{signSuffix, decryptSuffix} {
		b, err := os.ReadFile(filepath.Join(s.dir, name+suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unseal: keystore: look at %s: %w", name, err)
		}
		block, _ := pem.Decode(b)
		whole = whole && block != nil
	}
	if whole {
		return nil
	}
	for _, suffix := range []string{signSuffix, decryptSuffix, pubSuffix} {
		if err := os.Remove(filepath.Join(s.dir, name+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unseal: keystore: drop half of %s: %w", name, err)
		}
	}
	return nil
}

// Load opens an identity. ErrPassphrase in the chain: wrong passphrase;
// fs.ErrNotExist: no such identity. A key file that others may read is refused.
func (s *Keystore) Load(name string, passphrase []byte) (*Identity, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	sign, err := s.load(name+signSuffix, passphrase)
	if err != nil {
		return nil, err
	}
	decrypt, err := s.load(name+decryptSuffix, passphrase)
	if err != nil {
		return nil, err
	}
	return IdentityOf(sign, decrypt)
}

func (s *Keystore) load(file string, passphrase []byte) (*PrivateKey, error) {
	b, err := readPrivate(filepath.Join(s.dir, file))
	if err != nil {
		return nil, fmt.Errorf("unseal: keystore: load: %w", err)
	}
	k, err := DecodeKey(b, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return k, nil
}

func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode is %#o; others can read it: chmod 600", path, info.Mode().Perm())
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s: %d bytes, at most %d", path, info.Size(), maxKeyFile)
	}
	return os.ReadFile(path)
}

// Public returns an identity's public keys without its passphrase.
func (s *Keystore) Public(name string) (sign, decrypt sealed.PublicKey, err error) {
	if err := checkName(name); err != nil {
		return sign, decrypt, err
	}
	b, err := os.ReadFile(filepath.Join(s.dir, name+pubSuffix))
	if err != nil {
		return sign, decrypt, fmt.Errorf("unseal: keystore: public keys: %w", err)
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(lines) != 2 {
		return sign, decrypt, fmt.Errorf("unseal: keystore: %s%s: want two lines", name, pubSuffix)
	}
	if sign, err = sealed.ParsePublicKeyText(lines[0]); err != nil {
		return sign, decrypt, fmt.Errorf("unseal: keystore: %s%s: line 1: %w", name, pubSuffix, err)
	}
	if decrypt, err = sealed.ParsePublicKeyText(lines[1]); err != nil {
		return sign, decrypt, fmt.Errorf("unseal: keystore: %s%s: line 2: %w", name, pubSuffix, err)
	}
	return sign, decrypt, nil
}

// List returns the names of the identities, sorted.
func (s *Keystore) List() ([]string, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("unseal: keystore: list: %w", err)
	}
	var names []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), signSuffix); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
