package gossip

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// codec reads and writes what members tell each other: CBOR arrays (RFC 8949) in
// its deterministic form, read strictly.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

// errMalformed marks what did not decode; callers count it and go on.
var errMalformed = errors.New("gossip: malformed")

func newCodec() (codec, error) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return codec{}, fmt.Errorf("gossip: set up CBOR encoding: %w", err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   4,
		MaxArrayElements:  64,
		MaxMapPairs:       64,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		return codec{}, fmt.Errorf("gossip: set up CBOR decoding: %w", err)
	}
	return codec{enc: enc, dec: dec}, nil
}

// wireVersion begins every encoding; a change of format is a new version.
const wireVersion = 2
