package opener_test

import (
	"bytes"
	"crypto/cipher"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm4"

	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func rootScalar(t *testing.T, pem []byte) []byte {
	t.Helper()
	k, err := unseal.DecodeKey(pem, []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	return k.Scalar()
}

func reversed(b []byte) []byte { b = bytes.Clone(b); slices.Reverse(b); return b }

// openKeyFile reads "FSMK" 01 || nonce || SM4-GCM(scalar || not_before || not_after).
func openKeyFile(t *testing.T, path string, key []byte) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, err := sm4.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSuffix(filepath.Base(path), ".key")
	plain, err := aead.Open(nil, b[5:17], b[17:], []byte("FSMK\x01"+id))
	if err != nil || len(plain) != 48 {
		t.Fatal("the key file is not as documented", err)
	}
	return plain[:32]
}
