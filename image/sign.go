package image

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// LabelSignature keeps an image's signature from being taken for any other.
const LabelSignature = "faasd-sec/v1 image"

// Statement is what a signature says: that its signer vouches for what has this
// digest, under this name.
type Statement struct {
	Repository string // without tag and digest; with the registry's host, unless it is the cluster's own
	Digest     string // sha256:…, of the image's manifest
	Signer     sealed.Fingerprint
	Time       time.Time // whole seconds
}

const statementVersion = "faasd-sec image v1"

// Bytes is the statement as it is signed: five lines, each ended by LF.
// docs/images.md has a test vector.
func (s Statement) Bytes() []byte {
	return fmt.Appendf(nil, "%s\nrepository %s\ndigest %s\nsigner %s\ntime %d\n", statementVersion, s.Repository, s.Digest, s.Signer, s.Time.Unix())
}

// parseStatement takes nothing but what Bytes gives.
func parseStatement(text string) (Statement, error) {
	var s Statement
	lines := strings.Split(text, "\n")
	if len(lines) != 6 {
		return s, fmt.Errorf("it has %d lines", len(lines)-1)
	}
	field := func(i int, name string) string { v, _ := strings.CutPrefix(lines[i], name+" "); return v }
	s.Repository, s.Digest = field(1, "repository"), field(2, "digest")
	var err error
	if s.Signer, err = sealed.ParseFingerprint(field(3, "signer")); err != nil {
		return s, fmt.Errorf("signer: %w", err)
	}
	at, err := strconv.ParseInt(field(4, "time"), 10, 64)
	if err != nil {
		return s, fmt.Errorf("time: %w", err)
	}
	s.Time = time.Unix(at, 0).UTC()
	if string(s.Bytes()) != text {
		return s, fmt.Errorf("it is not in its one form")
	}
	return s, nil
}

// signature is the content of an artifact of TypeSignature.
type signature struct {
	Statement string `json:"statement"`
	PublicKey string `json:"public_key"` // SM2 point, hex
	Signature []byte `json:"signature"`  // DER, base64
}

// Sign makes the content of an artifact of TypeSignature: a signature with SM2 and
// SM3 by the key of pub over LabelSignature, a NUL byte and the statement.
// Statement.Signer is set.
func Sign(random io.Reader, signer crypto.Signer, pub sealed.PublicKey, s Statement) ([]byte, error) {
	s.Signer = pub.Fingerprint()
	text := s.Bytes()
	if _, err := parseStatement(string(text)); err != nil {
		return nil, api.Invalid("image", "use a repository and a digest without spaces", "it cannot be signed: "+err.Error())
	}
	sig, by, err := sealed.Sign(random, signer, LabelSignature, text)
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	if by != pub {
		return nil, errors.New("sign image: the signer has another key")
	}
	return json.Marshal(signature{Statement: string(text), PublicKey: pub.String(), Signature: sig})
}

// VerifySignature checks an artifact of TypeSignature, and returns what was
// signed. Whose word that is, is Statement.Signer; whether it counts is the
// caller's business.
func VerifySignature(content []byte) (Statement, error) {
	bad := func(err error, what string) (Statement, error) {
		return Statement{}, &api.Error{Code: api.CodeForbidden, Field: "signature", Message: what, Err: err}
	}
	var sig signature
	if err := json.Unmarshal(content, &sig); err != nil {
		return bad(err, "an image's signature does not parse")
	}
	s, err := parseStatement(sig.Statement)
	if err != nil {
		return bad(err, "an image's signed statement does not parse")
	}
	pub, err := sealed.ParsePublicKeyText(sig.PublicKey)
	if err != nil {
		return bad(err, "the key of an image's signature does not parse")
	}
	if pub.Fingerprint() != s.Signer || !sealed.Verify(pub, sig.Signature, LabelSignature, []byte(sig.Statement)) {
		return bad(nil, "an image's signature does not hold")
	}
	return s, nil
}
