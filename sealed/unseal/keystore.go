package unseal

import (
	"errors"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// ErrPassphrase means that a key file did not open with the passphrase given.
var ErrPassphrase = errors.New("unseal: wrong passphrase")

// PRF is the hash under PBKDF2 in a key file.
type PRF string

// The PRFs.
const (
	PRFSM3    PRF = "sm3"
	PRFSHA256 PRF = "sha256" // for readers that know no HMAC-SM3, such as OpenSSL
)

// KeyFileOptions say how a key file is encrypted. The zero value is SM3 and
// 100,000 iterations.
type KeyFileOptions struct {
	PRF        PRF
	Iterations int // 100,000 or more
}

// EncodeKey returns an encrypted PKCS#8 key file in PEM.
func EncodeKey(k *PrivateKey, passphrase []byte, opts KeyFileOptions) ([]byte, error) {
	panic("unseal")
}

// DecodeKey opens a key file. ErrPassphrase in the chain: wrong passphrase.
func DecodeKey(pem, passphrase []byte) (*PrivateKey, error) { panic("unseal") }

// Keystore is a directory of identities: NAME.sign.pem and NAME.decrypt.pem, mode
// 0600, encrypted; NAME.pub, the two public keys in hex.
type Keystore struct{}

// OpenKeystore opens dir, made with mode 0700 if absent.
func OpenKeystore(dir string) (*Keystore, error) { panic("unseal") }

// Save writes an identity; it never overwrites one.
func (s *Keystore) Save(name string, id *Identity, passphrase []byte, opts KeyFileOptions) error {
	panic("unseal")
}

// Load opens an identity.
func (s *Keystore) Load(name string, passphrase []byte) (*Identity, error) { panic("unseal") }

// Public returns an identity's public keys without its passphrase.
func (s *Keystore) Public(name string) (sign, decrypt sealed.PublicKey, err error) { panic("unseal") }

// List returns the names of the identities, sorted.
func (s *Keystore) List() ([]string, error) { panic("unseal") }

// Deposit is the body of role 5.
type Deposit struct {
	Descriptor []byte   // signed
	Signing    []byte   // the function's signing scalar, 32 bytes
	Decryption [][]byte // scalars, in the descriptor's order
}

// EncodeDeposit returns the CBOR body.
func EncodeDeposit(d *Deposit) ([]byte, error) { panic("unseal") }

// DecodeDeposit reads a CBOR body strictly.
func DecodeDeposit(b []byte) (*Deposit, error) { panic("unseal") }

// Release is the body of role 6.
type Release struct {
	Signing    []byte   // the function's signing scalar, 32 bytes
	Decryption [][]byte // scalars, in the descriptor's order
}

// EncodeRelease returns the CBOR body.
func EncodeRelease(r *Release) ([]byte, error) { panic("unseal") }

// DecodeRelease reads a CBOR body strictly.
func DecodeRelease(b []byte) (*Release, error) { panic("unseal") }
