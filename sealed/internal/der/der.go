// Package der checks the two DER structures of the envelope's suite 0x0001
// strictly: an SM2 signature and an SM2 ciphertext of a 32-byte seed. It accepts
// exactly one encoding of each value, so that nobody can make a second grant
// from a first by re-encoding. It does no curve arithmetic.
package der

import "bytes"

// Bounds of the encodings, in bytes.
const (
	MaxSignature = 72  // SEQUENCE of two INTEGERs below 2^256
	MaxSeed      = 141 // SEQUENCE of two INTEGERs below 2^256 and two 32-byte OCTET STRINGs
)

const (
	order = "\xff\xff\xff\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x72\x03\xdf\x6b\x21\xc6\x05\x2b\x53\xbb\xf4\x09\x39\xd5\x41\x23"
	prime = "\xff\xff\xff\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"
)

// IsSignature reports whether b is SEQUENCE { INTEGER r, INTEGER s } with
// minimal encodings, 1 <= r, s < n, and nothing after it.
func IsSignature(b []byte) bool {
	body, ok := sequence(b)
	if !ok {
		return false
	}
	r, rest, ok := integer(body)
	if !ok || len(r) == 0 || !below(r, order) {
		return false
	}
	s, rest, ok := integer(rest)
	return ok && len(s) != 0 && below(s, order) && len(rest) == 0
}

// IsSeed reports whether b is SEQUENCE { INTEGER x, INTEGER y, OCTET STRING C3,
// OCTET STRING C2 } with minimal encodings, x and y below p, both strings of
// exactly 32 bytes, and nothing after it. Whether (x, y) is on the curve is for
// the decryption to find.
func IsSeed(b []byte) bool {
	body, ok := sequence(b)
	if !ok {
		return false
	}
	for range 2 {
		var v []byte
		if v, body, ok = integer(body); !ok || !below(v, prime) {
			return false
		}
	}
	return len(body) == 2*34 &&
		body[0] == 0x04 && body[1] == 32 &&
		body[34] == 0x04 && body[35] == 32
}

// sequence returns the content of a SEQUENCE that fills b.
func sequence(b []byte) ([]byte, bool) {
	if len(b) < 2 || b[0] != 0x30 {
		return nil, false
	}
	n, head := int(b[1]), 2
	if n == 0x81 && len(b) > 2 && b[2] >= 0x80 { // the long form only where the short one cannot say it
		n, head = int(b[2]), 3
	} else if n >= 0x80 {
		return nil, false // indefinite, or longer than anything valid here
	}
	if len(b) != head+n {
		return nil, false
	}
	return b[head:], true
}

// integer reads a minimal, non-negative INTEGER and returns its magnitude
// without leading zero bytes: empty for zero.
func integer(b []byte) (magnitude, rest []byte, ok bool) {
	if len(b) < 3 || b[0] != 0x02 {
		return nil, nil, false
	}
	n := int(b[1])
	if n == 0 || n > 33 || len(b) < 2+n {
		return nil, nil, false
	}
	v, rest := b[2:2+n], b[2+n:]
	if v[0]&0x80 != 0 {
		return nil, nil, false // negative
	}
	if v[0] == 0 {
		if n > 1 && v[1]&0x80 == 0 {
			return nil, nil, false // not minimal
		}
		v = v[1:]
	}
	return v, rest, true
}

// below compares a magnitude without leading zeros with a 32-byte bound. Both
// are public values.
func below(v []byte, bound string) bool {
	if len(v) != len(bound) {
		return len(v) < len(bound)
	}
	return bytes.Compare(v, []byte(bound)) < 0
}
