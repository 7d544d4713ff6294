package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"

	"github.com/faasd-sec/faasd-sec/api"
)

// maxRequestLen bounds a certificate request in bytes; ours have about 250.
const maxRequestLen = 4096

// NewRequest makes a key and a certificate request (PKCS#10, DER) that asks
// for id. The key stays with the caller; only the request travels.
func NewRequest(id string) (keyPEM, csr []byte, err error) {
	if err := CheckID(id); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make the certificate request: %w", err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return keyPEM, csr, nil
}

// Request is a checked certificate request.
type Request struct {
	// ID is what the requester wants to be called. It is a wish: one who may
	// join must still not take the id of a machine that is there already.
	ID  string
	key *ecdsa.PublicKey
}

// ParseRequest checks a certificate request: size, the proof that the
// requester holds the key, an ECDSA P-256 key, and the form of the id. The
// error is an *api.Error with CodeInvalid.
func ParseRequest(csr []byte) (*Request, error) {
	const remedy = "make the request with pki.NewRequest"
	if len(csr) > maxRequestLen {
		return nil, api.Invalid("csr", remedy, fmt.Sprintf("%d bytes, at most %d are allowed", len(csr), maxRequestLen))
	}
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, api.Invalid("csr", remedy, "it does not parse: "+err.Error())
	}
	if err := r.CheckSignature(); err != nil {
		return nil, api.Invalid("csr", remedy, "its signature does not verify")
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, api.Invalid("csr", remedy, "its key is not ECDSA P-256")
	}
	if err := CheckID(r.Subject.CommonName); err != nil {
		return nil, err
	}
	return &Request{ID: r.Subject.CommonName, key: key}, nil
}
