package attest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// maxEvidence bounds how many pieces one request may carry.
const maxEvidence = 8

// Verifiers is a fixed set of verifiers, one for each type. It is immutable and
// safe for concurrent use. The empty set refuses everything.
type Verifiers struct {
	byType map[string]Verifier
	types  []string
}

// NewVerifiers refuses a type that comes twice: which of the two decides must
// not depend on an order.
func NewVerifiers(list ...Verifier) (*Verifiers, error) {
	v := &Verifiers{byType: make(map[string]Verifier, len(list))}
	for _, one := range list {
		t := one.Type()
		if t == "" {
			return nil, errors.New("attest: a verifier has no type")
		}
		if _, twice := v.byType[t]; twice {
			return nil, fmt.Errorf("attest: two verifiers for evidence type %q", t)
		}
		v.byType[t] = one
		v.types = append(v.types, t)
	}
	slices.Sort(v.types)
	return v, nil
}

// Types lists the evidence types of the set, sorted.
func (v *Verifiers) Types() []string { return slices.Clone(v.types) }

// Verify returns the claims of the first piece of evidence whose type is in
// accepted and that verifies. Otherwise it is an *api.Error of CodeKeyRefused
// that says why each piece did not do.
func (v *Verifiers) Verify(ctx context.Context, statement []byte, evidence []api.Evidence, accepted []string) (Claims, error) {
	if len(accepted) == 0 {
		return Claims{}, refused("the function's owner accepts no type of evidence",
			"deploy it with sealed.attestation set to a type that the cluster's nodes can give")
	}
	if len(evidence) > maxEvidence {
		return Claims{}, refused(fmt.Sprintf("%d pieces of evidence, at most %d are looked at", len(evidence), maxEvidence), "")
	}
	var reasons []string
	for _, ev := range evidence {
		c, err := v.one(ctx, statement, ev, accepted)
		if err == nil {
			return c, nil
		}
		reasons = append(reasons, fmt.Sprintf("%q: %v", ev.Type, err))
	}
	if len(reasons) == 0 {
		reasons = []string{"no evidence was given"}
	}
	return Claims{}, refused(strings.Join(reasons, "; "), "the owner accepts "+strings.Join(accepted, ", "))
}

func (v *Verifiers) one(ctx context.Context, statement []byte, ev api.Evidence, accepted []string) (Claims, error) {
	if !slices.Contains(accepted, ev.Type) {
		return Claims{}, errors.New("the owner does not accept this type")
	}
	verifier, known := v.byType[ev.Type]
	if !known {
		return Claims{}, errors.New("this key broker cannot verify this type")
	}
	c, err := verifier.Verify(ctx, statement, ev)
	if err != nil {
		return Claims{}, err
	}
	// A verifier that claims another type than it was asked about could raise
	// the tier of weak evidence.
	if c.Type != ev.Type {
		return Claims{}, errors.New("the verifier answered for another type")
	}
	return c, nil
}

func refused(message, remedy string) error {
	return &api.Error{Code: api.CodeKeyRefused, Field: "evidence", Message: message, Remedy: remedy}
}
