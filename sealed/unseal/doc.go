// Package unseal is the receiving half of faasd-sec's envelope: it opens
// messages, keeps private keys, and encodes the bodies that carry private keys.
// Agents, callers, owners and key brokers link it; coordinators and nodes must
// not: that they cannot open anything is a property of what they are built from.
//
// What it promises: a message is handed on only after every check of
// docs/envelope.md passed, in the order given there, and each refusal carries
// that check's code; a request without sealed.FlagEarlyInput is handed on only
// after its last byte was verified; a request opens once per ReplaySet, a reply
// once per request; streaming takes constant memory; seeds and derived secrets
// are wiped when they leave a cache, records when their message is closed.
//
// What it does not: Go's runtime may have copied a secret before it was wiped,
// and the SM2 and SM4 libraries keep private keys and expanded keys in memory of
// their own until it is collected. The libraries are not a certified
// cryptographic module. Whether plaintext reaches a disk is the caller's doing:
// the spool it supplies sees ciphertext only, but swap sees everything.
package unseal
