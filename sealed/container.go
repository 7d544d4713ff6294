package sealed

import (
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
)

// The container of what an owner signs, descriptors and traffic statements:
//
//	magic        4
//	payload_len  u32 1..limit
//	payload          deterministic CBOR
//	owner_pub    65  the owner's SM2 signing key
//	sig_len      u8
//	sig              over label || 00 || every byte before sig_len
const (
	containerBefore = 4 + 4  // bytes before the payload
	containerAfter  = 65 + 1 // bytes between the payload and sig
)

// container is one that was parsed and whose signature is not yet trusted.
type container struct {
	owner   PublicKey
	payload []byte
	signed  []byte
	sig     []byte
}

// signContainer signs payload as key, which is owner's.
func signContainer(random io.Reader, owner crypto.Signer, key PublicKey, magic, label string, payload []byte, limit int) ([]byte, error) {
	if len(payload) > limit {
		return nil, fmt.Errorf("payload: %d bytes, at most %d", len(payload), limit)
	}
	b := append([]byte(nil), magic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	b = append(b, key[:]...)
	sig, signed, err := Sign(random, owner, label, b)
	if err != nil {
		return nil, err
	}
	if signed != key {
		return nil, errors.New("owner: the signer changed its key meanwhile")
	}
	return append(append(b, byte(len(sig))), sig...), nil
}

// parseContainer decodes strictly: one payload has one container, up to its
// signature. It keeps references to b.
func parseContainer(b []byte, magic string, limit uint32) (*container, error) {
	if len(b) < containerBefore+containerAfter {
		return nil, fmt.Errorf("container: %d bytes are too few", len(b))
	}
	if string(b[:4]) != magic {
		return nil, errors.New("container: does not begin with " + magic)
	}
	size := binary.BigEndian.Uint32(b[4:])
	if size < 1 || size > limit || int(size) > len(b)-containerBefore-containerAfter {
		return nil, fmt.Errorf("container: payload_len is %d, the container has %d bytes", size, len(b))
	}
	at := containerBefore + int(size)
	c := &container{payload: b[containerBefore:at], signed: b[:at+65], sig: b[at+containerAfter:]}
	if int(b[at+65]) != len(c.sig) {
		return nil, fmt.Errorf("container: sig_len is %d, %d bytes follow", b[at+65], len(c.sig))
	}
	if !der.IsSignature(c.sig) {
		return nil, errors.New("signature: not strict DER")
	}
	var err error
	if c.owner, err = ParsePublicKey(b[at : at+65]); err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	return c, nil
}

// verify refuses what the owner with this pinned fingerprint did not sign: with
// CodeSender what names another owner, with CodeSignature what is forged.
func (c *container) verify(owner Fingerprint, label, what string) error {
	if c.owner.Fingerprint() != owner {
		return refuse(CodeSender, "the "+what+" names another owner than the pinned one")
	}
	if !Verify(c.owner, c.sig, label, c.signed) {
		return refuse(CodeSignature, "the "+what+"'s signature does not verify")
	}
	return nil
}
