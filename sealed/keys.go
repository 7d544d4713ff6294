package sealed

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
)

// PublicKey is an SM2 public key: 0x04 || x || y. The zero value means "none".
// Make one with ParsePublicKey or PublicKeyOf, which check that the point is on
// the curve.
type PublicKey [65]byte

// Fingerprint is SM3 over a public key's SubjectPublicKeyInfo: how policies and
// people name a key.
type Fingerprint [32]byte

// KeyID is the first 16 bytes of a key's Fingerprint: how a grant names its
// recipient.
type KeyID [16]byte

// Digest is an SM3 digest.
type Digest [32]byte

// ID is a random invocation id; a reply repeats its request's.
type ID [16]byte

// spkiPrefix stands before the point in a DER SubjectPublicKeyInfo with
// id-ecPublicKey and the SM2 curve 1.2.156.10197.1.301.
const spkiPrefix = "\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x81\x1c\xcf\x55\x01\x82\x2d\x03\x42\x00"

// ParsePublicKey checks an uncompressed point.
func ParsePublicKey(point []byte) (PublicKey, error) {
	var k PublicKey
	if len(point) != len(k) {
		return k, fmt.Errorf("sealed: public key has %d bytes, want %d", len(point), len(k))
	}
	copy(k[:], point)
	if _, err := k.ecdsa(); err != nil {
		return PublicKey{}, err
	}
	return k, nil
}

// ParsePublicKeyText reads the 130 lower-case hex digits that String writes.
func ParsePublicKeyText(s string) (PublicKey, error) {
	var k PublicKey
	if err := decodeHex(k[:], s); err != nil {
		return PublicKey{}, fmt.Errorf("sealed: public key: %w", err)
	}
	return ParsePublicKey(k[:])
}

// PublicKeyOf converts what a crypto.Signer's or crypto.Decrypter's Public
// returns; anything but an SM2 key is an error.
func PublicKeyOf(pub crypto.PublicKey) (PublicKey, error) {
	switch k := pub.(type) {
	case PublicKey:
		return ParsePublicKey(k[:])
	case *ecdsa.PublicKey:
		if k == nil || !sm2.IsSM2PublicKey(k) {
			return PublicKey{}, errors.New("sealed: public key is not on the SM2 curve")
		}
		e, err := sm2.PublicKeyToECDH(k)
		if err != nil {
			return PublicKey{}, fmt.Errorf("sealed: public key: %w", err)
		}
		return ParsePublicKey(e.Bytes())
	default:
		return PublicKey{}, fmt.Errorf("sealed: public key is a %T, want an SM2 key", pub)
	}
}

func (k PublicKey) ecdsa() (*ecdsa.PublicKey, error) {
	if k[0] != 4 {
		return nil, errors.New("sealed: public key is not an uncompressed point")
	}
	pub, err := sm2.NewPublicKey(k[:])
	if err != nil {
		return nil, errors.New("sealed: public key is not a point on the SM2 curve")
	}
	return pub, nil
}

// IsZero reports whether k is no key at all.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// SPKI returns the DER SubjectPublicKeyInfo, 91 bytes.
func (k PublicKey) SPKI() []byte { return append([]byte(spkiPrefix), k[:]...) }

// Fingerprint returns SM3(SPKI).
func (k PublicKey) Fingerprint() Fingerprint {
	var spki [len(spkiPrefix) + len(k)]byte
	copy(spki[:], spkiPrefix)
	copy(spki[len(spkiPrefix):], k[:])
	return sm3.Sum(spki[:])
}

// KeyID returns the first 16 bytes of the fingerprint.
func (k PublicKey) KeyID() KeyID { f := k.Fingerprint(); return KeyID(f[:16]) }

// String returns the point in lower-case hex.
func (k PublicKey) String() string { return hex.EncodeToString(k[:]) }

// MarshalText implements encoding.TextMarshaler; the zero key is empty.
func (k PublicKey) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return nil, nil
	}
	return []byte(k.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler and checks the point; empty
// text is the zero key.
func (k *PublicKey) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*k = PublicKey{}
		return nil
	}
	p, err := ParsePublicKeyText(string(b))
	if err != nil {
		return err
	}
	*k = p
	return nil
}

// String returns lower-case hex.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText implements encoding.TextMarshaler.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Fingerprint) UnmarshalText(b []byte) error { return decodeHex(f[:], string(b)) }

// ParseFingerprint reads 64 lower-case hex digits.
func ParseFingerprint(s string) (f Fingerprint, err error) {
	err = f.UnmarshalText([]byte(s))
	return f, err
}

// String returns lower-case hex.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id KeyID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *KeyID) UnmarshalText(b []byte) error { return decodeHex(id[:], string(b)) }

// String returns lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d is all zero.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(b []byte) error { return decodeHex(d[:], string(b)) }

// ParseDigest reads 64 lower-case hex digits.
func ParseDigest(s string) (d Digest, err error) {
	err = d.UnmarshalText([]byte(s))
	return d, err
}

// NewID draws an invocation id from random.
func NewID(random io.Reader) (ID, error) {
	var id ID
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return ID{}, fmt.Errorf("sealed: draw an invocation id: %w", err)
	}
	return id, nil
}

// String returns lower-case hex.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is all zero.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error { return decodeHex(id[:], string(b)) }

// decodeHex fills dst from lower-case hex of exactly its length: one text per
// value, so that texts can be compared.
func decodeHex(dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("sealed: %d hex digits, want %d", len(s), 2*len(dst))
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("sealed: character %d is not a lower-case hex digit", i)
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err
}
