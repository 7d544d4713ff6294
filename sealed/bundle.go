package sealed

import (
	"fmt"
	"io"

	"github.com/emmansun/gmsm/sm3"
)

// BundleNonce is how many bytes stand before a bundle's tar that only its owner
// can know: random ones, or a MAC of the tar under a secret key. They are part of its
// digest, which is public, so that nobody can confirm a guess at secret code or
// values by hashing it.
const BundleNonce = 32

// BundleDigest returns SM3(nonce || tar) and the number of bytes in tar.
func BundleDigest(nonce *[BundleNonce]byte, tar io.Reader) (Digest, int64, error) {
	h := sm3.New()
	h.Write(nonce[:])
	n, err := io.Copy(h, tar)
	if err != nil {
		return Digest{}, n, fmt.Errorf("sealed: bundle digest: %w", err)
	}
	return Digest(h.Sum(nil)), n, nil
}
