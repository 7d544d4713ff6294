// Package attest decides whether a sandbox that asks for a function's keys is
// what its owner allows to have them.
//
// A sandbox makes a statement: the ephemeral key that only it can decrypt with.
// The machine under it adds evidence about that statement, of one or more types,
// which can be done while the sandbox waits for a function: keys that are sealed
// to the statement's key reach that sandbox and nobody else, whichever function
// they are for. A Verifier understands one type
// and turns evidence into Claims; Verifiers is the fixed set that a relying
// party, the key broker, was configured with.
//
// What it promises: without a verified piece of evidence of a type that the
// function's owner listed there are no claims. An unknown type, an empty list,
// an error and a doubt all end in a refusal.
//
// What it does not: claims are only as good as their type. "node-key" proves
// which enrolled machine asks; it does not prove what runs on it, since whoever
// is root there can sign anything with the machine's key. It is marked
// dev-untrusted wherever it shows.
package attest

import (
	"context"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// MaxAge is how old evidence or a statement may be by the verifier's clock: they
// are made while a sandbox waits. MaxSkew is how far in the future it may lie.
const (
	MaxAge  = 5 * time.Minute
	MaxSkew = 60 * time.Second
)

// Claims are what a verifier vouches for.
type Claims struct {
	Type         string        // the evidence type that was verified
	NodeID       string        // the machine, as its certificate names it
	AgentDigest  sealed.Digest // SM3 of the agent's binary; see DevUntrusted for who says so
	IssuedAt     time.Time     // when the evidence was made
	DevUntrusted bool          // nothing but the machine's own word stands behind AgentDigest
}

// Tier is how the claims are shown to people.
func (c Claims) Tier() string {
	if c.Type == TypeNodeKey {
		return TierNodeKey
	}
	if c.DevUntrusted {
		return c.Type + " (dev-untrusted)"
	}
	return c.Type
}

// Verifier understands one type of evidence.
type Verifier interface {
	// Type is the evidence type it verifies.
	Type() string
	// Verify checks that ev vouches for exactly this statement, now.
	Verify(ctx context.Context, statement []byte, ev api.Evidence) (Claims, error)
}

// Collector makes evidence of one type on a node.
type Collector interface {
	// Type is the evidence type it makes.
	Type() string
	// Collect makes evidence about statement.
	Collect(ctx context.Context, statement []byte) (api.Evidence, error)
}
