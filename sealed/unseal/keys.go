package unseal

import (
	"crypto"
	"io"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// Key is a decryption key in its time.
type Key struct {
	Decrypter crypto.Decrypter // SM2; serves this format and nothing else
	NotBefore time.Time        // zero: no bound
	NotAfter  time.Time        // zero: no bound
}

// KeySet is a reader's decryption keys. It is immutable and safe for concurrent use.
type KeySet struct{}

// NewKeySet refuses duplicates and anything but SM2 keys.
func NewKeySet(keys ...Key) (*KeySet, error) { panic("unseal") }

// Identity is the two SM2 keys of a person or service.
type Identity struct{}

// NewIdentity draws both keys.
func NewIdentity(random io.Reader) (*Identity, error) { panic("unseal") }

// IdentityFromScalars takes two 32-byte scalars.
func IdentityFromScalars(sign, decrypt []byte) (*Identity, error) { panic("unseal") }

// Signer returns the signing key.
func (id *Identity) Signer() crypto.Signer { panic("unseal") }

// Decrypter returns the decryption key.
func (id *Identity) Decrypter() crypto.Decrypter { panic("unseal") }

// SigningKey returns the public signing key.
func (id *Identity) SigningKey() sealed.PublicKey { panic("unseal") }

// DecryptionKey returns the public decryption key.
func (id *Identity) DecryptionKey() sealed.PublicKey { panic("unseal") }

// NewKey draws one SM2 key (it is a crypto.Signer and crypto.Decrypter).
func NewKey(random io.Reader) (*PrivateKey, error) { panic("unseal") }

// KeyFromScalar takes a 32-byte scalar.
func KeyFromScalar(scalar []byte) (*PrivateKey, error) { panic("unseal") }

// PrivateKey is an SM2 private key; use each to sign or to decrypt, never both.
type PrivateKey struct{}

// Public returns the public key as *ecdsa.PublicKey on the SM2 curve.
func (k *PrivateKey) Public() crypto.PublicKey { panic("unseal") }

// PublicKey returns the public key.
func (k *PrivateKey) PublicKey() sealed.PublicKey { panic("unseal") }

// Sign implements crypto.Signer over e = SM3(Z_A || M).
func (k *PrivateKey) Sign(random io.Reader, e []byte, opts crypto.SignerOpts) ([]byte, error) {
	panic("unseal")
}

// Decrypt implements crypto.Decrypter over the DER SM2 ciphertext.
func (k *PrivateKey) Decrypt(random io.Reader, ct []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	panic("unseal")
}

// Scalar returns a copy of the 32-byte scalar: wipe it.
func (k *PrivateKey) Scalar() []byte { panic("unseal") }

// SelfTest runs the known-answer tests of SM2, SM3 and SM4: call it at start.
func SelfTest() error { panic("unseal") }
