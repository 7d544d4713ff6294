package unseal

import (
	"crypto/rand"
	"math/big"
	"testing"

	"github.com/emmansun/gmsm/sm2"
)

// What publicOf takes and says is what KeyFromScalar does, at the edges too.
func TestPublicKeysOfScalarsAreThoseOfTheirKeys(t *testing.T) {
	n := sm2.P256().Params().N
	scalars := [][]byte{nil, make([]byte, 31), make([]byte, 33)}
	for _, off := range []int64{-3, -2, -1, 0, 1} {
		scalars = append(scalars, new(big.Int).Add(n, big.NewInt(off)).FillBytes(make([]byte, ScalarSize)), big.NewInt(off+3).FillBytes(make([]byte, ScalarSize)))
	}
	top := make([]byte, ScalarSize)
	for i := range top {
		top[i] = 0xff
	}
	scalars = append(scalars, top)
	for range 50 {
		k, err := NewKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		scalars = append(scalars, k.Scalar())
	}
	taken := 0
	for _, s := range scalars {
		k, kerr := KeyFromScalar(s)
		pub, err := publicOf(s)
		if (kerr == nil) != (err == nil) || err == nil && pub != k.pub {
			t.Errorf("%x: %v and %v", s, kerr, err)
		}
		if err == nil {
			taken++
		}
	}
	if taken < 50 || taken == len(scalars) {
		t.Errorf("%d of %d were taken", taken, len(scalars))
	}
}
