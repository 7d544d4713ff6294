package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Files of an authority inside its directory.
const (
	caCertFile = "ca.crt" // PEM, public
	caKeyFile  = "ca.key" // PEM, PKCS#8, mode 0600
)

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// clockSkew is how far in the past a certificate begins, so that a machine
	// whose clock is a little behind accepts it at once.
	clockSkew = 5 * time.Minute
	// MaxTTL bounds a certificate's life, as there is no revocation.
	MaxTTL = 90 * 24 * time.Hour
)

// Authority signs the certificates of one cluster. It is safe for use by
// several goroutines.
type Authority struct {
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	cluster string
	now     func() time.Time
}

// NewCluster makes an authority with a fresh cluster id in dir, which is
// created with mode 0700. It refuses with CodeConflict where one exists.
func NewCluster(dir string) (*Authority, error) { return newCluster(dir, time.Now) }

func newCluster(dir string, now func() time.Time) (*Authority, error) {
	if err := makeAuthorityDir(dir); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the authority's key: %w", err)
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("draw the cluster id: %w", err)
	}
	cluster := hex.EncodeToString(id[:])
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "faasd-sec cluster " + cluster},
		NotBefore:             now().Add(-clockSkew),
		NotAfter:              now().Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs processes, never another authority
		URIs:                  []*url.URL{{Scheme: scheme, Host: cluster}},
		// Even one who takes this key can make names of this cluster alone.
		PermittedDNSDomainsCritical: true, // the flag of the whole extension
		PermittedURIDomains:         []string{cluster},
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "faasd-sec cluster " + cluster}}, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the authority's certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	// The key first: a crash in between leaves a directory that Load refuses
	// with a clear error, never a certificate that was handed out without key.
	if err := writeFile(filepath.Join(dir, caKeyFile), keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(dir, caCertFile), encodeCert(der), 0o644); err != nil {
		return nil, err
	}
	return load(dir, now)
}

// makeAuthorityDir makes dir, which must not hold an authority.
func makeAuthorityDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the authority's directory: %w", err)
	}
	for _, f := range []string{caCertFile, caKeyFile} {
		if _, err := os.Lstat(filepath.Join(dir, f)); !errors.Is(err, fs.ErrNotExist) {
			return &api.Error{Code: api.CodeConflict, Field: "directory", Err: err,
				Message: fmt.Sprintf("%s has a %s already", dir, f), Remedy: "load it, or choose another directory"}
		}
	}
	return nil
}

// Load opens the authority in dir. A missing one gives CodeNotFound; a key
// that others may read, or that is not the certificate's, is refused.
func Load(dir string) (*Authority, error) { return load(dir, time.Now) }

func load(dir string, now func() time.Time) (*Authority, error) {
	keyPEM, err := readPrivate(filepath.Join(dir, caKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Code: api.CodeNotFound, Message: "no cluster authority in " + dir, Err: err,
			Remedy: "make one with NewCluster (faasd-sec init)"}
	} else if err != nil {
		return nil, err
	}
	certPEM, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caKeyFile), err)
	}
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caCertFile), err)
	}
	cluster, err := clusterOf(cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caCertFile), err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s: %s is not the key of %s", dir, caKeyFile, caCertFile)
	}
	if now().After(cert.NotAfter) {
		return nil, fmt.Errorf("%s: the authority's certificate ended on %s", dir, cert.NotAfter.Format(time.DateOnly))
	}
	return &Authority{cert: cert, key: key, cluster: cluster, now: now}, nil
}

// ClusterID is the cluster's id, 32 hex characters.
func (a *Authority) ClusterID() string { return a.cluster }

// CertificatePEM is the authority's public certificate.
func (a *Authority) CertificatePEM() []byte { return encodeCert(a.cert.Raw) }

// Hash is the SHA-256 of the authority's certificate (DER). Join tokens carry
// it, so that a machine that knows nothing else can tell the true cluster.
func (a *Authority) Hash() [sha256.Size]byte { return sha256.Sum256(a.cert.Raw) }

// Sign certifies the public key of a request as role and id for ttl, and
// returns the certificate as PEM. Nothing in the request but its key is used:
// the caller decides who the holder is, and that the id is not another's.
func (a *Authority) Sign(req *Request, role Role, id string, ttl time.Duration) ([]byte, error) {
	return a.sign(req.key, role, id, ttl)
}

// Issue makes a key and its certificate for a process on this machine.
func (a *Authority) Issue(role Role, id string, ttl time.Duration) (keyPEM, certPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	if certPEM, err = a.sign(&key.PublicKey, role, id, ttl); err != nil {
		return nil, nil, err
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return keyPEM, certPEM, nil
}

func (a *Authority) sign(pub *ecdsa.PublicKey, role Role, id string, ttl time.Duration) ([]byte, error) {
	if _, err := ParseRole(string(role)); err != nil {
		return nil, err
	}
	if err := CheckID(id); err != nil {
		return nil, err
	}
	if ttl <= 0 || ttl > MaxTTL {
		return nil, api.Invalid("ttl", fmt.Sprintf("use more than 0 and at most %s", MaxTTL), ttl.String())
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := a.now()
	end := now.Add(ttl)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	p := Peer{Cluster: a.cluster, Role: role, ID: id}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: string(role) + " " + id},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		// Each process is a client of some peers and a server to others.
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{p.URI()},
	}, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", p, err)
	}
	return encodeCert(der), nil
}

// clusterOf reads the cluster id out of an authority's certificate.
func clusterOf(ca *x509.Certificate) (string, error) {
	if !ca.IsCA || len(ca.URIs) != 1 {
		return "", errors.New("not a cluster authority's certificate")
	}
	id := ca.URIs[0].Host
	if b, err := hex.DecodeString(id); err != nil || len(b) != 16 || ca.URIs[0].String() != scheme+"://"+id {
		return "", fmt.Errorf("the authority's name %q is not %s://CLUSTER", ca.URIs[0], scheme)
	}
	return id, nil
}

// newSerial draws 127 random bits, which need no register to be unique.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
