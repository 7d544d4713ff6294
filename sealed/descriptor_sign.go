package sealed

import (
	"crypto"
	"errors"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
)

const (
	descriptorMagic = "FSD1"
	// MaxSignedDescriptor is the most bytes of a signed descriptor.
	MaxSignedDescriptor = containerBefore + MaxDescriptor + containerAfter + der.MaxSignature
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
	b, err := signContainer(random, owner, key, descriptorMagic, LabelDescriptor, d.appendPayload(nil), MaxDescriptor)
	if err != nil {
		return nil, fmt.Errorf("sealed: descriptor: %w", err)
	}
	return b, nil
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
	d *Descriptor
	c *container
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
	c, err := parseContainer(b, descriptorMagic, MaxDescriptor)
	if err != nil {
		return nil, err
	}
	d, err := decodePayload(c.payload)
	if err != nil {
		return nil, err
	}
	if err = d.validate(); err != nil {
		return nil, err
	}
	return &SignedDescriptor{d: d, c: c}, d.checkOwner(c.owner)
}

// ClaimedOwner returns the signing key the descriptor names: for trust on first
// use, and to pick the pin.
func (s *SignedDescriptor) ClaimedOwner() PublicKey { return s.c.owner }

// Unverified returns the content, which anybody may have made.
func (s *SignedDescriptor) Unverified() *Descriptor { return s.d }

// Verify returns the content if the owner with this pinned fingerprint signed
// it; errors.Is(err, CodeSender): another owner; CodeSignature: a forged one.
func (s *SignedDescriptor) Verify(owner Fingerprint) (*Descriptor, error) {
	if err := s.c.verify(owner, LabelDescriptor, "descriptor"); err != nil {
		return nil, err
	}
	return s.d, nil
}
