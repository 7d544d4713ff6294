package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// tokenPrefix tells what the text is and its version.
const tokenPrefix = "fsj1"

// tokenLabel separates this hash from any other use of SHA-256.
const tokenLabel = "faasd-sec/v1 join token\x00"

// Token lets one machine join: it proves to the coordinator that an
// administrator invited it, and to the machine which cluster it is joining.
// Its text is a secret; formatting and logging show the public part alone.
type Token struct {
	CAHash [sha256.Size]byte // of the authority's certificate, DER
	secret [32]byte
}

// NewToken draws a token for the authority whose certificate has caHash. How
// often and how long it may be used is kept by whoever stores its hash.
func NewToken(caHash [sha256.Size]byte) (Token, error) {
	t := Token{CAHash: caHash}
	if _, err := rand.Read(t.secret[:]); err != nil {
		return Token{}, fmt.Errorf("draw a join token: %w", err)
	}
	return t, nil
}

// ParseToken reads "fsj1.<CA hash>.<secret>", both parts base64url without
// padding. The error is an *api.Error with CodeInvalid and never quotes the text.
func ParseToken(s string) (Token, error) {
	const remedy = "copy the whole token as it was printed, it begins with fsj1."
	var t Token
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 || parts[0] != tokenPrefix {
		return t, api.Invalid("token", remedy, "it is not in the form fsj1.HASH.SECRET")
	}
	for i, dst := range [][]byte{t.CAHash[:], t.secret[:]} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(parts[i+1])
		if err != nil || len(b) != len(dst) {
			return Token{}, api.Invalid("token", remedy, fmt.Sprintf("part %d is not %d bytes in base64url", i+2, len(dst)))
		}
		copy(dst, b)
	}
	return t, nil
}

// Text is the whole token, to be shown to an administrator once and typed
// into the joining machine. It is a secret.
func (t Token) Text() string {
	return t.public() + "." + base64.RawURLEncoding.EncodeToString(t.secret[:])
}

// HashToken is the hex name under which a token is stored. The secret has 256
// random bits, so a plain hash needs no salt and no stretching.
func HashToken(t Token) string {
	h := sha256.New()
	h.Write([]byte(tokenLabel))
	h.Write(t.CAHash[:])
	h.Write(t.secret[:])
	return hex.EncodeToString(h.Sum(nil))
}

// Matches compares a token with a stored hash in constant time.
func (t Token) Matches(hash string) bool {
	return subtle.ConstantTimeCompare([]byte(HashToken(t)), []byte(hash)) == 1
}

func (t Token) public() string {
	return tokenPrefix + "." + base64.RawURLEncoding.EncodeToString(t.CAHash[:])
}

// String, GoString and LogValue leave the secret out.
func (t Token) String() string       { return t.public() + ".(secret)" }
func (t Token) GoString() string     { return t.String() }
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }
