package opener

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"

	"github.com/emmansun/gmsm/sm4"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	blobMagic = "FSMB\x01" // bounds, kept by the coordinator
	fileMagic = "FSMK\x01" // a manifest key, in a file of the opener's
	nonceSize = 12
	tagSize   = 16
)

var errBox = errors.New("it was changed, or belongs elsewhere")

// seal returns magic || nonce || SM4-GCM(plain), AAD = magic || about. Nonces
// are random: one key seals 2^32 of them before a repeat becomes likely.
func seal(random io.Reader, key []byte, magic string, about, plain []byte) ([]byte, error) {
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	out := append(make([]byte, 0, len(magic)+nonceSize+len(plain)+tagSize), magic...)
	out = out[:len(magic)+nonceSize]
	nonce := out[len(magic):]
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	return aead.Seal(out, nonce, plain, append([]byte(magic), about...)), nil
}

// open is the reverse; the plaintext is the caller's to wipe.
func open(key []byte, magic string, about, b []byte) ([]byte, error) {
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	n := len(magic) + nonceSize
	if len(b) < n+tagSize || string(b[:len(magic)]) != magic {
		return nil, errBox
	}
	plain, err := aead.Open(nil, b[len(magic):n], b[n:], append([]byte(magic), about...))
	if err != nil {
		return nil, errBox
	}
	return plain, nil
}

// gcm is made anew for each use: its expanded key must not outlive it.
func gcm(key []byte) (cipher.AEAD, error) {
	block, err := sm4.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("sm4: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("sm4-gcm: %w", err)
	}
	return aead, nil
}

// aboutBounds binds a blob to what it is for: revision || owner || name, of
// which only the last varies in length.
func aboutBounds(name api.FunctionName, revision sealed.Digest, owner sealed.Fingerprint) []byte {
	b := append(make([]byte, 0, 64+len(name)), revision[:]...)
	return append(append(b, owner[:]...), name...)
}
