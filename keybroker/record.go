package keybroker

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/sealed"
)

const recordVersion = 1

// record is what the broker keeps of one function. After a removal it stays
// without descriptor and keys: its sequence still refuses an older deposit of
// the same owner that somebody kept.
type record struct {
	Version    uint     `cbor:"1,keyasint"`
	Owner      []byte   `cbor:"2,keyasint"` // SM2 signing point, 65 bytes
	Sequence   uint64   `cbor:"3,keyasint"`
	Descriptor []byte   `cbor:"4,keyasint,omitempty"` // signed
	Signing    []byte   `cbor:"5,keyasint,omitempty"` // scalar
	Decryption [][]byte `cbor:"6,keyasint,omitempty"` // scalars, in the descriptor's order
}

func (r *record) removed() bool { return len(r.Descriptor) == 0 }

func (r *record) owner() (sealed.PublicKey, error) { return sealed.ParsePublicKey(r.Owner) }

// wipe overwrites the private scalars.
func (r *record) wipe() {
	if r == nil {
		return
	}
	clear(r.Signing)
	for _, s := range r.Decryption {
		clear(s)
	}
}

// encode returns the CBOR of r, which holds the scalars: the caller wipes it. The
// library's own buffers are pooled and never wiped, and one that grows leaves
// copies behind, so it writes into one of ours that is large enough.
func (r *record) encode() ([]byte, error) {
	mode, err := cbor.EncOptions{}.UserBufferEncMode()
	if err != nil {
		return nil, fmt.Errorf("keybroker: encode a record: %w", err)
	}
	var b bytes.Buffer
	b.Grow(len(r.Descriptor) + len(r.Owner) + (1+len(r.Decryption))*64 + 256)
	if err := mode.MarshalToBuffer(r, &b); err != nil {
		clear(b.Bytes())
		return nil, fmt.Errorf("keybroker: encode a record: %w", err)
	}
	return b.Bytes(), nil
}

func decodeRecord(b []byte) (*record, error) {
	r := new(record)
	if err := cbor.Unmarshal(b, r); err != nil {
		return nil, errors.New("keybroker: the record does not decode")
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("keybroker: record of version %d, only %d is known", r.Version, recordVersion)
	}
	return r, nil
}

// descriptor parses the signed descriptor and verifies it against the owner
// that the name is bound to.
func (r *record) descriptor() (*sealed.Descriptor, error) {
	owner, err := r.owner()
	if err != nil {
		return nil, err
	}
	signed, err := sealed.ParseDescriptor(r.Descriptor)
	if err != nil {
		return nil, err
	}
	return signed.Verify(owner.Fingerprint())
}
