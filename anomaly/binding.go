package anomaly

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const labelBinding = "faasd-sec/v1 anomaly log key"

// bindingDigest is SHA-256 over what a member signs about its log's key:
//
//	"faasd-sec/v1 anomaly log key" || 00 || u8 length || member || fingerprint || u64 unix ms
func bindingDigest(member string, f sealed.Fingerprint, atMs int64) []byte {
	b := append([]byte(labelBinding), 0, byte(len(member)))
	b = append(b, member...)
	b = append(b, f[:]...)
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(atMs)))
	return sum[:]
}

// BindKey signs, with the key of a member's certificate, that key signs its log.
// chain is DER, the leaf first.
func BindKey(member string, key crypto.PublicKey, signer crypto.Signer, chain [][]byte, random io.Reader, now time.Time) (*api.LogKey, error) {
	if !isName(member, MaxNode) {
		return nil, api.Invalid("member", "give the id of its certificate", "it is no such id")
	}
	pub, err := sealed.PublicKeyOf(key)
	if err != nil {
		return nil, fmt.Errorf("anomaly: bind the log's key: %w", err)
	}
	k := &api.LogKey{Member: member, Fingerprint: pub.Fingerprint().String(), Public: pub.String(), AtMs: now.UnixMilli(), Chain: chain}
	if k.Signature, err = signer.Sign(random, bindingDigest(member, pub.Fingerprint(), k.AtMs), crypto.SHA256); err != nil {
		return nil, fmt.Errorf("anomaly: bind the log's key: %w", err)
	}
	return k, nil
}

// CheckBinding verifies k and returns the fingerprint to trust for the member's
// log. verify judges the leaf of the chain and returns whose it is.
//
// It says that who held the member's key vouched for the log's key then, and
// nothing of what the log holds.
func CheckBinding(k *api.LogKey, verify func(leaf []byte) (member string, key crypto.PublicKey, err error)) (sealed.Fingerprint, error) {
	refuse := func(why string) (sealed.Fingerprint, error) {
		return sealed.Fingerprint{}, api.Errorf(api.CodeUnauthorized, "the log's key is not bound to its member: %s", why)
	}
	pub, err := sealed.ParsePublicKeyText(k.Public)
	if err != nil {
		return refuse("it is no key")
	}
	if pub.Fingerprint().String() != k.Fingerprint || len(k.Chain) == 0 || len(k.Member) > MaxNode {
		return refuse("its parts do not fit together")
	}
	member, key, err := verify(k.Chain[0])
	if err != nil {
		return sealed.Fingerprint{}, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || member != k.Member {
		return refuse("the certificate is another member's")
	}
	if !ecdsa.VerifyASN1(ec, bindingDigest(k.Member, pub.Fingerprint(), k.AtMs), k.Signature) {
		return refuse("the signature does not verify")
	}
	return pub.Fingerprint(), nil
}
