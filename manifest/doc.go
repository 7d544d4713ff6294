// Package manifest is what a task needs, as its initiator says it: sealed to the
// cluster on the way, and parsed only in the manifest opener (package opener).
//
// It is pure: types, their encoding, their bounds, how an initiator's wish is
// merged with what the function's owner allows, and the sealing. It holds no
// private key and opens nothing. docs/manifest.md is the format, exact to the
// byte.
//
// What it promises: one value has one encoding, and nothing else decodes; what
// decodes is within the bounds of every field; a merged manifest is within the
// owner's bounds.
//
// What it does not: that a need can be met, or that the initiator may send it.
// Placement decides the first, the opener the second.
package manifest
