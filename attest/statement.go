package attest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// MaxStatement is the longest statement in bytes; a real one has under 450.
const MaxStatement = 1024

// Statement is a sandbox's statement in checked form.
type Statement struct {
	Ephemeral sealed.PublicKey // what the sandbox can decrypt with
	IssuedAt  time.Time
}

// strictCBOR refuses what two readers could read differently.
var strictCBOR = sync.OnceValues(cbor.DecOptions{
	DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
	ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, TagsMd: cbor.TagsForbidden,
	MaxArrayElements: 16, MaxMapPairs: 16, MaxNestedLevels: 4,
}.DecMode)

// ParseStatement decodes and checks a statement: its fields, and that it was
// made at most MaxAge before now. It proves nothing about who made it.
func ParseStatement(b []byte, now time.Time) (Statement, error) {
	if len(b) > MaxStatement {
		return Statement{}, badStatement(fmt.Errorf("%d bytes, at most %d are read", len(b), MaxStatement))
	}
	dec, err := strictCBOR()
	if err != nil {
		return Statement{}, fmt.Errorf("attest: make the CBOR decoder: %w", err)
	}
	var raw api.Statement
	if err := dec.Unmarshal(b, &raw); err != nil {
		return Statement{}, badStatement(errors.New("it is not the CBOR of a statement"))
	}
	var s Statement
	if s.Ephemeral, err = sealed.ParsePublicKey(raw.Ephemeral); err != nil {
		return Statement{}, badStatement(errors.New("ephemeral is not a point on the SM2 curve"))
	}
	if len(raw.Nonce) != 16 {
		return Statement{}, badStatement(fmt.Errorf("nonce has %d bytes, not 16", len(raw.Nonce)))
	}
	s.IssuedAt = time.UnixMilli(raw.IssuedAtMs)
	if err := fresh(s.IssuedAt, now); err != nil {
		return Statement{}, badStatement(err)
	}
	return s, nil
}

func badStatement(err error) error {
	return &api.Error{Code: api.CodeKeyRefused, Field: "statement", Message: err.Error()}
}

func fresh(made, now time.Time) error {
	switch age := now.Sub(made); {
	case age > MaxAge:
		return fmt.Errorf("made %s ago by the key broker's clock, at most %s is taken: set the clocks, for example by NTP",
			age.Round(time.Second), MaxAge)
	case age < -MaxSkew:
		return fmt.Errorf("made %s ahead of the key broker's clock, at most %s is taken: set the clocks, for example by NTP",
			(-age).Round(time.Second), MaxSkew)
	}
	return nil
}
