package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"
)

// memberTTL is how long the certificate of a store's member lasts.
const memberTTL = 60 * 24 * time.Hour

// Member is the certificate with which the members of the coordinators' store
// know each other. It carries one DNS name, MemberName, and no URI: it is good
// for nothing else in the cluster, and no other certificate is good here.
type Member struct {
	File   string       // PEM of key and certificate, mode 0600
	CAFile string       // PEM of the authority that it must chain to
	Name   string       // the DNS name that both sides must show
	Log    *slog.Logger // hears of renewals that failed; nil: nobody does

	authority *Authority
}

// MemberName is the DNS name of all members of a cluster's store.
func (a *Authority) MemberName() string { return "store." + a.cluster }

// EnsureMember has a certificate for a member at file, and issues one where
// there is none, it is due for renewal, or it is not of this authority. caDir
// is where the authority was loaded from. One that is due and cannot be replaced
// just now, by a full disk, still does: KeepRenewed tries again.
func (a *Authority) EnsureMember(file, caDir string) (*Member, error) {
	m := &Member{File: file, CAFile: filepath.Join(caDir, caCertFile), Name: a.MemberName(), authority: a}
	if err := m.renew(); err != nil && m.leaf() == nil {
		return m, err
	}
	return m, nil
}

// KeepRenewed renews the certificate after two thirds of its life until ctx
// ends, whose error it returns. A failure is told and tried again each hour while
// the former certificate is valid, and ends it then: the certificate is made and
// kept on this machine, so a person must look.
func (m *Member) KeepRenewed(ctx context.Context) error {
	log := m.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for {
		if err := m.renew(); err != nil {
			leaf := m.leaf()
			if leaf == nil {
				return err
			}
			log.Warn("certificate of the store's member not renewed", "left", leaf.NotAfter.Sub(m.authority.now()), "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// renew writes a new key and certificate unless those in the file still do.
func (m *Member) renew() error {
	b, err := readPrivate(m.File)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("certificate of the store's member: %w", err)
	}
	if leaf := m.leafOf(b); leaf != nil && m.authority.now().Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore)*2/3)) {
		return nil
	}
	keyPEM, certPEM, err := m.authority.issueMember()
	if err != nil {
		return err
	}
	return writeFile(m.File, append(keyPEM, certPEM...), 0o600)
}

// leaf is the certificate in the file while it is valid, else nil.
func (m *Member) leaf() *x509.Certificate {
	b, err := readPrivate(m.File)
	if err != nil {
		return nil
	}
	return m.leafOf(b)
}

// leafOf is the certificate in b while it is valid, else nil.
func (m *Member) leafOf(b []byte) *x509.Certificate {
	parts, err := splitPEM(b, pemKey, pemCert)
	if err != nil {
		return nil
	}
	leaf, err := parseCert(parts[1])
	if err != nil {
		return nil
	}
	roots := x509.NewCertPool()
	roots.AddCert(m.authority.cert)
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: m.Name, Roots: roots, CurrentTime: m.authority.now()}); err != nil {
		return nil
	}
	return leaf
}

func (a *Authority) issueMember() (keyPEM, certPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := a.now()
	end := now.Add(memberTTL)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "member of the store"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{a.MemberName()},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the certificate of the store's member: %w", err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return keyPEM, encodeCert(der), nil
}

// KeyPEM is the authority's private key. It leaves this machine only for
// another coordinator, which then is this authority as well.
func (a *Authority) KeyPEM() ([]byte, error) { return encodeKey(a.key) }

// SaveAuthority writes an authority as another coordinator handed it over. It
// refuses with CodeConflict where one exists, and one whose parts differ.
func SaveAuthority(dir string, keyPEM, certPEM []byte) error {
	if err := makeAuthorityDir(dir); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, caKeyFile), keyPEM, 0o600); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, caCertFile), certPEM, 0o644); err != nil {
		return err
	}
	_, err := Load(dir)
	return err
}
