// Package sealed is the sending half of faasd-sec's envelope: it makes grants,
// seals messages under them, parses what of an envelope is in clear, and signs
// and verifies function descriptors. docs/envelope.md is the format, exact to
// the byte; this package implements its suite 0x0001 (SM2, SM3, SM4-GCM,
// HKDF-SM3).
//
// What it promises: only the holder of the recipient's SM2 decryption key reads
// a sealed body; that reader learns which SM2 signing key vouched for the grant;
// a changed, cut, extended, reordered or redirected message does not open; a
// reply opens for its own request alone.
//
// What it does not: the signature covers the grant, not each message, so whoever
// holds a grant's seed can make messages under it inside its window. There is no
// forward secrecy within the life of a decryption key. Sender, reply key,
// function name, revision, sizes and timing are in clear. A body whose final
// record never came was cut, and a reader that acts before the end acts on a
// part.
//
// No private decryption key is ever used here. Opening lives in sealed/unseal,
// which coordinators and nodes must not link.
package sealed
