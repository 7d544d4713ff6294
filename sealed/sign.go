package sealed

import (
	"crypto"
	"errors"
	"fmt"
	"io"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
)

// Labels keep a signature made for one purpose from being taken for another.
// What is signed is label || one NUL byte || message.
const (
	LabelGrant      = "faasd-sec/v1 grant"
	LabelDescriptor = "faasd-sec/v1 descriptor"
	LabelTraffic    = "faasd-sec/v1 traffic"
)

// smPublicParams is ENTL || the default signer id || a || b || xG || yG, the part
// of Z_A that is the same for every key (GB/T 32918.2, 5.5; GM/T 0009).
const smPublicParams = "\x00\x80" + "1234567812345678" +
	"\xff\xff\xff\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xfc" +
	"\x28\xe9\xfa\x9e\x9d\x9f\x5e\x34\x4d\x5a\x9e\x4b\xcf\x65\x09\xa7\xf3\x97\x89\xf5\x15\xab\x8f\x92\xdd\xbc\xbd\x41\x4d\x94\x0e\x93" +
	"\x32\xc4\xae\x2c\x1f\x19\x81\x19\x5f\x99\x04\x46\x6a\x39\xc9\x94\x8f\xe3\x0b\xbf\xf2\x66\x0b\xe1\x71\x5a\x45\x89\x33\x4c\x74\xc7" +
	"\xbc\x37\x36\xa2\xf4\xf6\x77\x9c\x59\xbd\xce\xe3\x6b\x69\x21\x53\xd0\xa9\x87\x7c\xc6\x2a\x47\x40\x02\xdf\x32\xe5\x21\x39\xf0\xa0"

// SignatureDigest returns e = SM3(Z_A || label || NUL || message parts) for the
// signer pub and the default signer id: what an SM2 crypto.Signer is given.
func SignatureDigest(pub PublicKey, label string, parts ...[]byte) [32]byte {
	var za [len(smPublicParams) + len(pub) - 1]byte
	copy(za[copy(za[:], smPublicParams):], pub[1:])
	z := sm3.Sum(za[:])

	h := sm3.New()
	h.Write(z[:])
	io.WriteString(h, label)
	h.Write([]byte{0})
	for _, p := range parts {
		h.Write(p)
	}
	var e [32]byte
	h.Sum(e[:0])
	return e
}

// Sign signs label || NUL || message parts. The signer's Sign is given e and the
// options crypto.Hash(0); its result is checked to be strict DER. It returns the
// signer's public key too.
func Sign(random io.Reader, signer crypto.Signer, label string, parts ...[]byte) (sig []byte, pub PublicKey, err error) {
	if pub, err = signerKey(signer); err != nil {
		return nil, PublicKey{}, fmt.Errorf("sealed: sign: %w", err)
	}
	e := SignatureDigest(pub, label, parts...)
	if sig, err = signer.Sign(random, e[:], crypto.Hash(0)); err != nil {
		return nil, PublicKey{}, fmt.Errorf("sealed: sign: %w", err)
	}
	if !der.IsSignature(sig) {
		return nil, PublicKey{}, errors.New("sealed: sign: the signer's answer is not a DER SM2 signature")
	}
	return sig, pub, nil
}

// Verify reports whether sig is a strict DER SM2-with-SM3 signature by pub over
// label || NUL || message parts.
func Verify(pub PublicKey, sig []byte, label string, parts ...[]byte) bool {
	if !der.IsSignature(sig) {
		return false
	}
	k, err := pub.ecdsa()
	if err != nil {
		return false
	}
	e := SignatureDigest(pub, label, parts...)
	return sm2.VerifyASN1(k, e[:], sig)
}
