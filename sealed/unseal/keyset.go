package unseal

import (
	"crypto"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// Key is a decryption key in its time.
type Key struct {
	Decrypter crypto.Decrypter // SM2; serves this format and nothing else
	NotBefore time.Time        // zero: no bound
	NotAfter  time.Time        // zero: no bound; that very second is still inside
}

// KeySet is a reader's decryption keys. It is immutable and safe for concurrent
// use; after a rotation make a new Opener with a new one, and Clear its Cache.
type KeySet struct {
	keys []liveKey
}

type liveKey struct {
	id        sealed.KeyID
	pub       sealed.PublicKey
	dec       crypto.Decrypter
	notBefore uint64 // unix milliseconds
	notAfter  uint64
}

// NewKeySet refuses duplicates and anything but SM2 keys.
func NewKeySet(keys ...Key) (*KeySet, error) {
	if len(keys) == 0 {
		return nil, errors.New("unseal: key set: no keys")
	}
	s := &KeySet{keys: make([]liveKey, 0, len(keys))}
	for i, k := range keys {
		if k.Decrypter == nil {
			return nil, fmt.Errorf("unseal: key set: key %d: none given", i)
		}
		pub, err := sealed.PublicKeyOf(k.Decrypter.Public())
		if err != nil {
			return nil, fmt.Errorf("unseal: key set: key %d: %w", i, err)
		}
		l := liveKey{id: pub.KeyID(), pub: pub, dec: k.Decrypter, notAfter: ^uint64(0)}
		if !k.NotBefore.IsZero() {
			l.notBefore = milliseconds(k.NotBefore)
		}
		if !k.NotAfter.IsZero() {
			// Not Before, which takes times that far ahead for early ones.
			if !k.NotBefore.IsZero() && k.NotAfter.Unix() < k.NotBefore.Unix() || k.NotAfter.Unix() < 0 {
				return nil, fmt.Errorf("unseal: key set: key %d: ends before it begins", i)
			}
			l.notAfter = milliseconds(k.NotAfter) + 999
		}
		for _, other := range s.keys {
			if other.id == l.id {
				return nil, fmt.Errorf("unseal: key set: key %d: given twice", i)
			}
		}
		s.keys = append(s.keys, l)
	}
	return s, nil
}

// milliseconds of the second that t is in, or of the last that can be said.
func milliseconds(t time.Time) uint64 {
	return uint64(min(max(0, t.Unix()), math.MaxInt64/1000)) * 1000
}

// KeysOf makes the set for one key without bounds.
func KeysOf(d crypto.Decrypter) (*KeySet, error) { return NewKeySet(Key{Decrypter: d}) }

func (s *KeySet) live(id sealed.KeyID, nowMS uint64) *liveKey {
	for i := range s.keys {
		if k := &s.keys[i]; k.id == id && k.notBefore <= nowMS && nowMS <= k.notAfter {
			return k
		}
	}
	return nil
}
