// Package keybroker keeps the private keys of functions for their owners and
// releases them to sandboxes that prove, to the degree the owner asked for, what
// they are.
//
// An owner deposits a function's keys sealed to the broker (role 5), together
// with the signed descriptor that says who may have them. A sandbox asks with a
// statement and evidence; the broker seals the keys (role 6) to the ephemeral
// key in that statement. It runs where the owner trusts, apart from the nodes
// and, best, from the coordinators' operator.
//
// What it promises: keys leave only sealed, to the ephemeral key of a statement
// for the current revision, or for one that its owner's live traffic statement
// names, for which evidence of a type that the owner listed was verified; a name
// belongs to the owner who deposited it first; an older descriptor or traffic
// statement never replaces a newer one, also after a crash; on disk there is
// nothing in plaintext; an acknowledged deposit survives the loss of power.
//
// Keys of revisions that are named no more are not released from that moment, and
// are gone from the vault's file a minute later at most.
//
// What it does not: evidence is as good as its type (see package attest). Who
// controls the broker's machine while it runs can read the keys in its memory.
// Key bytes are wiped after use where this package holds them; the Go runtime
// and the crypto library may leave copies.
package keybroker
