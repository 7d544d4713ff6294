package sealed

import (
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
)

// The signed container:
//
//	magic        4   "FSD1"
//	payload_len  u32 1..65536
//	payload          deterministic CBOR
//	owner_pub    65  the owner's SM2 signing key
//	sig_len      u8
//	sig              over "faasd-sec/v1 descriptor" || 00 || every byte before sig_len
const (
	descriptorMagic = "FSD1"
	// MaxSignedDescriptor is the most bytes of a signed descriptor.
	MaxSignedDescriptor = 4 + 4 + MaxDescriptor + 65 + 1 + der.MaxSignature
)

// Sign validates d and encodes it signed by its owner.
func (d *Descriptor) Sign(random io.Reader, owner crypto.Signer) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	key, err := signerKey(owner)
	if err != nil {
		return nil, fmt.Errorf("sealed: descriptor: owner: %w", err)
	}
	if err := d.checkOwner(key); err != nil {
		return nil, fmt.Errorf("sealed: descriptor: %w", err)
	}
	payload := d.appendPayload(nil)
	if len(payload) > MaxDescriptor {
		return nil, fmt.Errorf("sealed: descriptor: payload: %d bytes, at most %d", len(payload), MaxDescriptor)
	}
	b := append([]byte(nil), descriptorMagic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	b = append(b, key[:]...)
	sig, signed, err := Sign(random, owner, LabelDescriptor, b)
	if err != nil {
		return nil, fmt.Errorf("sealed: descriptor: %w", err)
	}
	if signed != key {
		return nil, errors.New("sealed: descriptor: owner: the signer changed its key meanwhile")
	}
	return append(append(b, byte(len(sig))), sig...), nil
}

// checkOwner refuses an owner's signing key that also decrypts.
func (d *Descriptor) checkOwner(owner PublicKey) error {
	if owner == d.LogRecipient {
		return errors.New("log recipient: is the owner's signing key; give the owner's decryption key")
	}
	for i := range d.Decryption {
		if d.Decryption[i].Key == owner {
			return fmt.Errorf("decryption key %d: is the owner's signing key too", i)
		}
	}
	return nil
}

// SignedDescriptor is a parsed descriptor whose signature is not yet trusted.
type SignedDescriptor struct {
	d      *Descriptor
	owner  PublicKey
	signed []byte
	sig    []byte
}

// ParseDescriptor decodes strictly: one descriptor has one encoding, up to its
// signature. It does not verify. It keeps no reference to b.
func ParseDescriptor(b []byte) (*SignedDescriptor, error) {
	s, err := parseDescriptor(append([]byte(nil), b...))
	if err != nil {
		return nil, fmt.Errorf("sealed: descriptor: %w", err)
	}
	return s, nil
}

func parseDescriptor(b []byte) (*SignedDescriptor, error) {
	const before, after = 8, 65 + 1
	if len(b) < before+after {
		return nil, fmt.Errorf("container: %d bytes are too few", len(b))
	}
	if string(b[:4]) != descriptorMagic {
		return nil, errors.New("container: does not begin with FSD1")
	}
	size := binary.BigEndian.Uint32(b[4:])
	if size < 1 || size > MaxDescriptor || int(size) > len(b)-before-after {
		return nil, fmt.Errorf("container: payload_len is %d, the container has %d bytes", size, len(b))
	}
	at := before + int(size)
	s := &SignedDescriptor{signed: b[:at+65], sig: b[at+after:]}
	if int(b[at+65]) != len(s.sig) {
		return nil, fmt.Errorf("container: sig_len is %d, %d bytes follow", b[at+65], len(s.sig))
	}
	if !der.IsSignature(s.sig) {
		return nil, errors.New("signature: not strict DER")
	}
	var err error
	if s.owner, err = ParsePublicKey(b[at : at+65]); err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	if s.d, err = decodePayload(b[before:at]); err != nil {
		return nil, err
	}
	if err = s.d.validate(); err != nil {
		return nil, err
	}
	return s, s.d.checkOwner(s.owner)
}

// ClaimedOwner returns the signing key the descriptor names: for trust on first
// use, and to pick the pin.
func (s *SignedDescriptor) ClaimedOwner() PublicKey { return s.owner }

// Unverified returns the content, which anybody may have made.
func (s *SignedDescriptor) Unverified() *Descriptor { return s.d }

// Verify returns the content if the owner with this pinned fingerprint signed
// it; errors.Is(err, CodeSender): another owner; CodeSignature: a forged one.
func (s *SignedDescriptor) Verify(owner Fingerprint) (*Descriptor, error) {
	if s.owner.Fingerprint() != owner {
		return nil, refuse(CodeSender, "the descriptor names another owner than the pinned one")
	}
	if !Verify(s.owner, s.sig, LabelDescriptor, s.signed) {
		return nil, refuse(CodeSignature, "the descriptor's signature does not verify")
	}
	return s.d, nil
}
