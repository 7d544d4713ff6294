package reqauth

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// maxHeader bounds what is parsed: a well-formed header is under 520 bytes.
const maxHeader = 1024

const signRemedy = "sign the request with an owner's key, as faasd-sec does"

// params are the parts of the header, as text: the text is what is signed.
type params struct {
	key   sealed.PublicKey
	ts    int64
	tsRaw string
	nonce string
	body  string
	sig   []byte
}

// signedText is everything after the label and its NUL byte.
func signedText(method, target, ts, nonce, body string) []byte {
	return []byte(method + "\n" + target + "\n" + ts + "\n" + nonce + "\n" + body)
}

func (p params) header() string {
	return Scheme + " key=" + p.key.String() + ", ts=" + p.tsRaw + ", nonce=" + p.nonce +
		", body=" + p.body + ", sig=" + hex.EncodeToString(p.sig)
}

// parseHeader reads the five parameters: each exactly once, in any order, with
// one spelling per value.
func parseHeader(h string) (params, error) {
	var p params
	if h == "" {
		return p, denied("the request is not signed", signRemedy)
	}
	if len(h) > maxHeader {
		return p, denied(fmt.Sprintf("%d bytes, at most %d are read", len(h), maxHeader), signRemedy)
	}
	scheme, rest, _ := strings.Cut(h, " ")
	if scheme != Scheme {
		return p, denied("the scheme is not "+Scheme, signRemedy)
	}
	values := make(map[string]string, 5)
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return p, denied("a parameter has no value", signRemedy)
		}
		if _, twice := values[name]; twice {
			return p, denied("a parameter stands twice", signRemedy)
		}
		switch name {
		case "key", "ts", "nonce", "body", "sig":
			values[name] = value
		default:
			return p, denied("an unknown parameter", signRemedy)
		}
	}
	if len(values) != 5 {
		return p, denied("one of key, ts, nonce, body and sig is missing", signRemedy)
	}
	return p, p.fill(values)
}

func (p *params) fill(values map[string]string) (err error) {
	if p.key, err = sealed.ParsePublicKeyText(values["key"]); err != nil {
		return denied("key is not an SM2 point in lower-case hex", signRemedy)
	}
	p.tsRaw = values["ts"]
	if p.ts, err = strconv.ParseInt(p.tsRaw, 10, 64); err != nil || p.ts < 0 || strconv.FormatInt(p.ts, 10) != p.tsRaw {
		return denied("ts is not a time in unix seconds", signRemedy)
	}
	if p.nonce = values["nonce"]; !lowerHex(p.nonce, 32) {
		return denied("nonce is not 32 lower-case hex digits", signRemedy)
	}
	if p.body = values["body"]; p.body != unsignedBody && !lowerHex(p.body, 64) {
		return denied("body is not an SM3 digest in lower-case hex", signRemedy)
	}
	sig := values["sig"]
	if len(sig)%2 != 0 || !lowerHex(sig, len(sig)) || len(sig) > 2*80 {
		return denied("sig is not a signature in lower-case hex", signRemedy)
	}
	p.sig, err = hex.DecodeString(sig)
	return err
}

func lowerHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func denied(message, remedy string) error {
	return &api.Error{Code: api.CodeUnauthorized, Field: "Authorization", Message: message, Remedy: remedy}
}
