package reqauth

import (
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// Signer makes Authorization headers. Its fields are read only.
type Signer struct {
	Key    crypto.Signer    // the owner's SM2 signing key
	Random io.Reader        // crypto/rand.Reader outside tests
	Now    func() time.Time // time.Now outside tests
}

// Sign returns the header for a request whose whole body has the given digest.
func (s *Signer) Sign(method, target string, body sealed.Digest) (string, error) {
	return s.sign(method, target, body.String())
}

// SignUnsigned returns the header for a request whose body the signature does
// not cover. Verifiers take it only where the body is protected otherwise.
func (s *Signer) SignUnsigned(method, target string) (string, error) {
	return s.sign(method, target, unsignedBody)
}

func (s *Signer) sign(method, target, body string) (string, error) {
	if strings.ContainsAny(method, "\r\n ") || strings.ContainsAny(target, "\r\n ") {
		return "", errors.New("reqauth: sign: method or target has a space or line break")
	}
	var nonce [16]byte
	if _, err := io.ReadFull(s.Random, nonce[:]); err != nil {
		return "", fmt.Errorf("reqauth: draw a nonce: %w", err)
	}
	ts := s.Now().Unix()
	p := params{ts: ts, tsRaw: strconv.FormatInt(ts, 10), nonce: hex.EncodeToString(nonce[:]), body: body}
	sig, pub, err := sealed.Sign(s.Random, s.Key, Label, signedText(method, target, p.tsRaw, p.nonce, body))
	if err != nil {
		return "", fmt.Errorf("reqauth: %w", err)
	}
	p.key, p.sig = pub, sig
	return p.header(), nil
}

// Transport signs every request on its way to Base. A body is hashed through
// GetBody beforehand, so that it may be of any size in flat memory; a body that
// can be read only once is refused unless Unsigned permits leaving it out.
type Transport struct {
	Base     http.RoundTripper
	Signer   *Signer
	Unsigned func(*http.Request) bool // nil: no body may stay unsigned
}

var _ http.RoundTripper = (*Transport)(nil)

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	header, err := t.header(req)
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	signed := req.Clone(req.Context())
	signed.Header.Set("Authorization", header)
	return t.Base.RoundTrip(signed)
}

func (t *Transport) header(req *http.Request) (string, error) {
	target := req.URL.RequestURI()
	switch {
	case req.Body == nil || req.Body == http.NoBody:
		return t.Signer.Sign(req.Method, target, sm3.Sum(nil))
	case t.Unsigned != nil && t.Unsigned(req):
		return t.Signer.SignUnsigned(req.Method, target)
	case req.GetBody == nil:
		return "", fmt.Errorf("reqauth: %s %s: the body can be read only once, so it cannot be signed", req.Method, req.URL.Path)
	}
	body, err := req.GetBody()
	if err != nil {
		return "", fmt.Errorf("reqauth: read the body: %w", err)
	}
	defer body.Close()
	h := sm3.New()
	if _, err := io.Copy(h, body); err != nil {
		return "", fmt.Errorf("reqauth: read the body: %w", err)
	}
	return t.Signer.Sign(req.Method, target, sealed.Digest(h.Sum(nil)))
}

// RegistryUpload reports whether a request sends a blob to an OCI registry: its
// content is checked there against the digest in the signed request-target, or
// of the request that completes the upload.
func RegistryUpload(req *http.Request) bool {
	return IsRegistryUpload(req.Method, req.URL.Path)
}

// IsRegistryUpload is RegistryUpload for a verifier that has no *http.Request.
func IsRegistryUpload(method, path string) bool {
	if method != http.MethodPatch && method != http.MethodPut && method != http.MethodPost {
		return false
	}
	return strings.HasPrefix(path, "/v2/") && strings.Contains(path, "/blobs/uploads/")
}
