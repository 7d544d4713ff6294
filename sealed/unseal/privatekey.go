package unseal

import (
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
)

// ScalarSize is the size of a private key, in bytes, big-endian.
const ScalarSize = 32

// PrivateKey is an SM2 private key; use each to sign or to decrypt, never both.
// It is safe for concurrent use, and prints as its public key.
type PrivateKey struct {
	key *sm2.PrivateKey
	pub sealed.PublicKey
}

var (
	_ crypto.Signer    = (*PrivateKey)(nil)
	_ crypto.Decrypter = (*PrivateKey)(nil)
)

// NewKey draws one SM2 key (it is a crypto.Signer and crypto.Decrypter).
func NewKey(random io.Reader) (*PrivateKey, error) {
	k, err := sm2.GenerateKey(random)
	if err != nil {
		return nil, fmt.Errorf("unseal: draw a key: %w", err)
	}
	return wrapKey(k)
}

// KeyFromScalar takes a 32-byte scalar in 1..n-2; it keeps no reference.
func KeyFromScalar(scalar []byte) (*PrivateKey, error) {
	if len(scalar) != ScalarSize {
		return nil, fmt.Errorf("unseal: scalar has %d bytes, want %d", len(scalar), ScalarSize)
	}
	k, err := sm2.NewPrivateKey(scalar)
	if err != nil {
		return nil, errors.New("unseal: scalar is not a private key of the SM2 curve")
	}
	return wrapKey(k)
}

// publicOf is the public key of a scalar in 1..n-2. A key that is made of one leaves a
// copy in the library's memory until that is used again; this leaves none.
func publicOf(scalar []byte) (sealed.PublicKey, error) {
	if len(scalar) != ScalarSize {
		return sealed.PublicKey{}, fmt.Errorf("unseal: scalar has %d bytes, want %d", len(scalar), ScalarSize)
	}
	var below uint64 // n-1, without a branch on what is secret
	for i := ScalarSize - 8; i >= 0; i -= 8 {
		_, below = bits.Sub64(binary.BigEndian.Uint64(scalar[i:]), binary.BigEndian.Uint64(lastScalar[i:]), below)
	}
	//lint:ignore SA1019 what is to be used instead keeps a copy of the scalar
	x, y := sm2.P256().ScalarBaseMult(scalar)
	point := sealed.PublicKey{4} // not compressed
	x.FillBytes(point[1 : 1+ScalarSize])
	y.FillBytes(point[1+ScalarSize:])
	pub, err := sealed.ParsePublicKey(point[:]) // refuses that of 0
	if below == 0 || err != nil {
		return sealed.PublicKey{}, errors.New("unseal: scalar is not a private key of the SM2 curve")
	}
	return pub, nil
}

// lastScalar is n-1 of the SM2 curve, GB/T 32918.5.
var lastScalar = [ScalarSize]byte{
	0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0x72, 0x03, 0xdf, 0x6b, 0x21, 0xc6, 0x05, 0x2b, 0x53, 0xbb, 0xf4, 0x09, 0x39, 0xd5, 0x41, 0x22,
}

func wrapKey(k *sm2.PrivateKey) (*PrivateKey, error) {
	pub, err := sealed.PublicKeyOf(&k.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return &PrivateKey{key: k, pub: pub}, nil
}

// Public returns the public key as *ecdsa.PublicKey on the SM2 curve.
func (k *PrivateKey) Public() crypto.PublicKey { return &k.key.PublicKey }

// PublicKey returns the public key.
func (k *PrivateKey) PublicKey() sealed.PublicKey { return k.pub }

// Sign implements crypto.Signer over e = SM3(Z_A || M), 32 bytes. opts must not
// ask for another hash. A nil random gives the deterministic signature of RFC
// 6979 with SM3.
func (k *PrivateKey) Sign(random io.Reader, e []byte, opts crypto.SignerOpts) ([]byte, error) {
	if len(e) != sm3.Size || opts != nil && opts.HashFunc() != 0 {
		return nil, errors.New("unseal: sign: want the 32 bytes of SM3(Z_A || M) and no other hash")
	}
	// The library's own options would make it hash e once more; they are not passed on.
	sig, err := k.key.Sign(random, e, crypto.Hash(0))
	if err != nil {
		return nil, fmt.Errorf("unseal: sign: %w", err)
	}
	return sig, nil
}

// Decrypt implements crypto.Decrypter over the strict DER SM2 ciphertext of a
// 32-byte seed, the one thing that this format ever encrypts to a key.
func (k *PrivateKey) Decrypt(random io.Reader, ct []byte, _ crypto.DecrypterOpts) ([]byte, error) {
	if !der.IsSeed(ct) {
		return nil, errors.New("unseal: decrypt: not the strict DER ciphertext of a seed")
	}
	seed, err := k.key.Decrypt(random, ct, sm2.ASN1DecrypterOpts)
	if err != nil {
		return nil, errors.New("unseal: decrypt: the ciphertext is not for this key, or was changed")
	}
	return seed, nil
}

// Scalar returns a copy of the 32-byte scalar: wipe it.
func (k *PrivateKey) Scalar() []byte { return k.key.D.FillBytes(make([]byte, ScalarSize)) }

// Wipe zeroes the scalar; the key is useless afterwards. The SM2 library may
// still hold copies of its own until they are collected.
func (k *PrivateKey) Wipe() {
	words := k.key.D.Bits()
	clear(words[:cap(words)])
}

// Format implements fmt.Formatter: no verb prints the scalar.
func (k *PrivateKey) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "unseal.PrivateKey(of %s)", k.pub.Fingerprint())
}

// LogValue implements slog.LogValuer.
func (k *PrivateKey) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }

// Identity is the two SM2 keys of a person or service.
type Identity struct {
	sign, decrypt *PrivateKey
}

// NewIdentity draws both keys.
func NewIdentity(random io.Reader) (*Identity, error) {
	sign, err := NewKey(random)
	if err != nil {
		return nil, err
	}
	decrypt, err := NewKey(random)
	if err != nil {
		return nil, err
	}
	return IdentityOf(sign, decrypt)
}

// IdentityOf joins two keys, which must differ.
func IdentityOf(sign, decrypt *PrivateKey) (*Identity, error) {
	if sign == nil || decrypt == nil {
		return nil, errors.New("unseal: identity: a key is missing")
	}
	if sign.pub == decrypt.pub {
		return nil, errors.New("unseal: identity: one key to sign and another to decrypt, not one for both")
	}
	return &Identity{sign: sign, decrypt: decrypt}, nil
}

// IdentityFromScalars takes two 32-byte scalars.
func IdentityFromScalars(sign, decrypt []byte) (*Identity, error) {
	s, err := KeyFromScalar(sign)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	d, err := KeyFromScalar(decrypt)
	if err != nil {
		return nil, fmt.Errorf("decryption key: %w", err)
	}
	return IdentityOf(s, d)
}

// Signer returns the signing key.
func (id *Identity) Signer() *PrivateKey { return id.sign }

// Decrypter returns the decryption key.
func (id *Identity) Decrypter() *PrivateKey { return id.decrypt }

// SigningKey returns the public signing key.
func (id *Identity) SigningKey() sealed.PublicKey { return id.sign.pub }

// DecryptionKey returns the public decryption key.
func (id *Identity) DecryptionKey() sealed.PublicKey { return id.decrypt.pub }

// SelfTest runs the known-answer tests of SM2, SM3 and SM4: call it at start, and
// refuse to run where it fails.
func SelfTest() error {
	if err := errors.Join(sm2.SelfTest(), sm3.SelfTest(), sm4.SelfTest()); err != nil {
		return fmt.Errorf("unseal: self test: %w", err)
	}
	return nil
}
