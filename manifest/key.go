package manifest

import (
	"crypto"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// keyLabel is what a signature over a manifest key begins with.
const keyLabel = "faasd-sec/v1 manifest key"

// Key is one of a cluster's manifest keys. Keys live for days; who pins, pins the
// identity that signs them.
type Key struct {
	Public    sealed.PublicKey `cbor:"1,keyasint"`
	NotBefore uint64           `cbor:"2,keyasint"` // unix seconds
	NotAfter  uint64           `cbor:"3,keyasint"` // unix seconds
	Identity  sealed.PublicKey `cbor:"4,keyasint"` // of the opener that has the private key
	Signature []byte           `cbor:"5,keyasint"` // by Identity, over the first three
}

// Fingerprint names the key.
func (k *Key) Fingerprint() sealed.Fingerprint { return k.Public.Fingerprint() }

// Sign makes Identity and Signature.
func (k *Key) Sign(random io.Reader, identity crypto.Signer) (err error) {
	if k.Signature, k.Identity, err = sealed.Sign(random, identity, keyLabel, k.signed()); err != nil {
		return fmt.Errorf("manifest: sign a key: %w", err)
	}
	return nil
}

// Verify reports whether Identity signed the key.
func (k *Key) Verify() bool { return sealed.Verify(k.Identity, k.Signature, keyLabel, k.signed()) }

func (k *Key) signed() []byte {
	b := append(make([]byte, 0, len(k.Public)+16), k.Public[:]...)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, k.NotBefore), k.NotAfter)
}
