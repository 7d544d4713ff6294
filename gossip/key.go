package gossip

import (
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"

	"github.com/faasd-sec/faasd-sec/api"
)

// Key is a secret shared by the members of one cluster. It is used to derive
// other keys and for nothing else. Change it in three steps, each on all members
// before the next: add the new key behind the old one, put it in front, drop the
// old one.
type Key [32]byte

// NewKey draws a key from rand, which must be crypto/rand.Reader outside tests.
func NewKey(rand io.Reader) (Key, error) {
	var k Key
	if _, err := io.ReadFull(rand, k[:]); err != nil {
		return Key{}, fmt.Errorf("gossip: draw a key: %w", err)
	}
	return k, nil
}

// ParseKey reads what Hex wrote. Its errors never quote the input.
func ParseKey(s string) (Key, error) {
	var k Key
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return Key{}, api.Invalid("gossip.key", "write 64 hex digits", fmt.Sprintf("%d characters are not a gossip key", len(s)))
	}
	copy(k[:], b)
	return k, nil
}

// Hex writes the key out, for the file it is kept in.
func (k Key) Hex() string { return hex.EncodeToString(k[:]) }

// String hides the key, so that it does not get into a log by mistake.
func (Key) String() string { return "[gossip key]" }

// GoString hides the key from %#v.
func (k Key) GoString() string { return k.String() }

// Format hides the key from every other verb, %x and %d among them.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// LogValue hides the key from slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText refuses, so that a key does not get into JSON by mistake.
func (Key) MarshalText() ([]byte, error) {
	return nil, fmt.Errorf("gossip: a key is not marshalled; use Hex where that is meant")
}

// checkKeys refuses a ring that would seal with nothing or tries one key twice.
func checkKeys(keys []Key) error {
	const field = "gossip.keys"
	if len(keys) == 0 {
		return api.Invalid(field, "give the cluster's key", "the key ring is empty")
	}
	if len(keys) > maxKeys {
		return api.Invalid(field, "drop old keys", fmt.Sprintf("%d keys, at most %d", len(keys), maxKeys))
	}
	for i, k := range keys {
		if k == (Key{}) {
			return api.Invalid(field, "draw a random key", fmt.Sprintf("key %d is all zero", i))
		}
		for _, other := range keys[:i] {
			if k == other {
				return api.Invalid(field, "name each key once", fmt.Sprintf("key %d is there twice", i))
			}
		}
	}
	return nil
}

// maxKeys bounds what a forged packet costs: each key is tried on it.
const maxKeys = 4
