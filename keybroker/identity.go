package keybroker

import (
	"crypto"
	"crypto/hkdf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

const (
	identityName  = "broker"      // in the keystore
	storageFile   = "storage.pem" // an SM2 key that only serves to derive the storage key
	storageInfo   = "faasd-sec/v1 keybroker storage"
	minPassphrase = 8 // bytes
)

// Identity is what a broker is: the key it signs releases with, the key
// deposits are sealed to, and the key its files are encrypted under.
type Identity struct {
	signer    crypto.Signer
	decrypter crypto.Decrypter
	signing   sealed.PublicKey
	decrypt   sealed.PublicKey
	storage   []byte // 16 bytes, SM4
}

// SigningKey is named in descriptors as the broker that may release.
func (id *Identity) SigningKey() sealed.PublicKey { return id.signing }

// DecryptionKey is what deposits are sealed to.
func (id *Identity) DecryptionKey() sealed.PublicKey { return id.decrypt }

// OpenIdentity loads the identity in dir, or makes it when dir holds none. All
// its files are PKCS#8 encrypted under passphrase; created says which it was. A
// wrong passphrase has unseal.ErrPassphrase in its chain.
func OpenIdentity(dir string, passphrase []byte, random io.Reader) (id *Identity, created bool, err error) {
	if len(passphrase) < minPassphrase {
		return nil, false, api.Invalid("passphrase", "choose a longer one, or let a credential store draw it",
			fmt.Sprintf("%d bytes, at least %d are wanted", len(passphrase), minPassphrase))
	}
	store, err := unseal.OpenKeystore(dir)
	if err != nil {
		return nil, false, fmt.Errorf("keybroker: %w", err)
	}
	storagePath := filepath.Join(dir, storageFile)
	if _, err := os.Lstat(storagePath); errors.Is(err, fs.ErrNotExist) {
		if err := create(store, storagePath, passphrase, random); err != nil {
			return nil, false, err
		}
		created = true
	} else if err != nil {
		return nil, false, fmt.Errorf("keybroker: identity: %w", err)
	}
	keys, err := store.Load(identityName, passphrase)
	if err != nil {
		return nil, false, fmt.Errorf("keybroker: identity in %s: %w", dir, err)
	}
	storage, err := loadStorageKey(storagePath, passphrase)
	if err != nil {
		return nil, false, err
	}
	return &Identity{signer: keys.Signer(), decrypter: keys.Decrypter(),
		signing: keys.SigningKey(), decrypt: keys.DecryptionKey(), storage: storage}, created, nil
}

// create makes the identity. The storage key comes last: a directory without it
// was never used, so what a crash left half made is completed, not replaced, and
// one key without the other is drawn again.
func create(store *unseal.Keystore, storagePath string, passphrase []byte, random io.Reader) error {
	if err := store.DropHalf(identityName); err != nil {
		return fmt.Errorf("keybroker: identity: %w", err)
	}
	names, err := store.List()
	if err != nil {
		return fmt.Errorf("keybroker: identity: %w", err)
	}
	if len(names) == 0 {
		id, err := unseal.NewIdentity(random)
		if err != nil {
			return fmt.Errorf("keybroker: make an identity: %w", err)
		}
		if err := store.Save(identityName, id, passphrase, unseal.KeyFileOptions{}); err != nil {
			return fmt.Errorf("keybroker: save the identity: %w", err)
		}
	}
	k, err := unseal.NewKey(random)
	if err != nil {
		return fmt.Errorf("keybroker: make the storage key: %w", err)
	}
	pem, err := unseal.EncodeKey(k, passphrase, unseal.KeyFileOptions{})
	if err != nil {
		return fmt.Errorf("keybroker: encode the storage key: %w", err)
	}
	return writeFile(storagePath, pem)
}

// loadStorageKey derives the SM4 key from a private key of its own, so that the
// decryption key serves the envelope and nothing else.
func loadStorageKey(path string, passphrase []byte) ([]byte, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("keybroker: storage key: %w", err)
	}
	k, err := unseal.DecodeKey(pem, passphrase)
	if err != nil {
		return nil, fmt.Errorf("keybroker: storage key in %s: %w", path, err)
	}
	scalar := k.Scalar()
	defer clear(scalar)
	key, err := hkdf.Key(sm3.New, scalar, nil, storageInfo, 16)
	if err != nil {
		return nil, fmt.Errorf("keybroker: derive the storage key: %w", err)
	}
	return key, nil
}
