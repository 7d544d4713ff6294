// Package strict encodes structs with integer keys in deterministic CBOR (RFC
// 8949, 4.2.1) and decodes nothing that it would not have encoded itself: what
// was read is encoded again and compared. So unknown, missing, repeated and
// unordered keys, long forms, indefinite lengths and trailing bytes are all
// refused, whatever the library below lets pass.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

type codec struct {
	enc cbor.UserBufferEncMode
	dec cbor.DecMode
}

// modes is made once; it is immutable.
var modes = sync.OnceValues(func() (codec, error) {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	enc, err := o.UserBufferEncMode()
	if err != nil {
		return codec{}, fmt.Errorf("cbor encoder: %w", err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, UTF8: cbor.UTF8RejectInvalid,
		MaxNestedLevels: 8, MaxArrayElements: 256, MaxMapPairs: 64,
	}.DecMode()
	if err != nil {
		return codec{}, fmt.Errorf("cbor decoder: %w", err)
	}
	return codec{enc, dec}, nil
})

// Marshal returns v's encoding in memory that nothing else refers to, so that
// the caller can wipe it; hint is its likely size. The library's pooled buffers,
// which are never wiped, are not used.
func Marshal(v any, hint int) ([]byte, error) {
	m, err := modes()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(hint)
	if err := m.enc.MarshalToBuffer(v, &b); err != nil {
		clear(b.Bytes())
		return nil, fmt.Errorf("encode: %w", err)
	}
	return b.Bytes(), nil
}

// Unmarshal reads exactly the bytes that Marshal writes for the value.
func Unmarshal(b []byte, v any) error {
	m, err := modes()
	if err != nil {
		return err
	}
	if err := m.dec.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	again, err := Marshal(v, len(b))
	if err != nil {
		return err
	}
	defer clear(again)
	if !bytes.Equal(again, b) {
		return errors.New("decode: a key is missing, or something is not in its one deterministic form")
	}
	return nil
}
