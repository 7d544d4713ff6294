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

	// A broker of an earlier release skips what follows, and releases the latest keys
	// alone.

	Stated  uint64 `cbor:"7,keyasint,omitempty"` // of the last traffic statement; it stays
	Traffic []byte `cbor:"8,keyasint,omitempty"` // signed; empty where none is gone by
	Beside  []held `cbor:"9,keyasint,omitempty"` // the older descriptors that Traffic names
}

// held is a descriptor with its keys.
type held struct {
	Sequence   uint64   `cbor:"1,keyasint"`
	Descriptor []byte   `cbor:"2,keyasint"` // signed
	Signing    []byte   `cbor:"3,keyasint"`
	Decryption [][]byte `cbor:"4,keyasint"`
}

// latest is the descriptor that was deposited last. It shares r's memory.
func (r *record) latest() *held {
	return &held{Sequence: r.Sequence, Descriptor: r.Descriptor, Signing: r.Signing, Decryption: r.Decryption}
}

func (r *record) removed() bool { return len(r.Descriptor) == 0 }

func (r *record) owner() (sealed.PublicKey, error) { return sealed.ParsePublicKey(r.Owner) }

// wipe overwrites the private scalars.
func (r *record) wipe() {
	if r == nil {
		return
	}
	r.latest().wipe()
	for i := range r.Beside {
		r.Beside[i].wipe()
	}
}

func (h *held) wipe() {
	clear(h.Signing)
	for _, s := range h.Decryption {
		clear(s)
	}
}

// size is more than the encoding takes, but for what all records have.
func (h *held) size() int { return len(h.Descriptor) + (1+len(h.Decryption))*64 + 64 }

// encode returns the CBOR of r, which holds the scalars: the caller wipes it. The
// library's own buffers are pooled and never wiped, and one that grows leaves
// copies behind, so it writes into one of ours that is large enough.
func (r *record) encode() ([]byte, error) {
	mode, err := cbor.EncOptions{}.UserBufferEncMode()
	if err != nil {
		return nil, fmt.Errorf("keybroker: encode a record: %w", err)
	}
	var b bytes.Buffer
	size := r.latest().size() + len(r.Owner) + len(r.Traffic) + 256
	for i := range r.Beside {
		size += r.Beside[i].size()
	}
	b.Grow(size)
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

// descriptor parses the signed descriptor and verifies it against the owner that
// the name is bound to.
func (h *held) descriptor(owner []byte) (*sealed.Descriptor, error) {
	key, err := sealed.ParsePublicKey(owner)
	if err != nil {
		return nil, err
	}
	signed, err := sealed.ParseDescriptor(h.Descriptor)
	if err != nil {
		return nil, err
	}
	return signed.Verify(key.Fingerprint())
}
