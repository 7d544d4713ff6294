package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// Role is what a process is in the cluster.
type Role string

// The roles that the authority certifies.
const (
	RoleCoordinator Role = "coordinator"
	RoleNode        Role = "node"
	RoleKeyBroker   Role = "keybroker"
)

// scheme of the URI name in each certificate.
const scheme = "faasd-sec"

// ParseRole reads a role. The error is an *api.Error with CodeInvalid.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case RoleCoordinator, RoleNode, RoleKeyBroker:
		return r, nil
	}
	return "", api.Invalid("role", "use coordinator, node or keybroker", fmt.Sprintf("%q is not a role", s))
}

// Peer is who a certificate says its holder is.
type Peer struct {
	Cluster string // the cluster's id, 32 hex characters
	Role    Role
	ID      string // unique among the holders of one role
}

// URI is the name in the certificate.
func (p Peer) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: p.Cluster, Path: "/" + string(p.Role) + "/" + p.ID}
}

// String is the URI as text.
func (p Peer) String() string { return p.URI().String() }

// CheckID accepts 1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with
// a letter or digit: host names pass, and nothing that could change a path.
func CheckID(id string) error {
	const remedy = "use 1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
	if id == "" || len(id) > 63 {
		return api.Invalid("id", remedy, fmt.Sprintf("it has %d characters", len(id)))
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		inner := (c == '-' || c == '.') && i > 0 && i < len(id)-1
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !inner {
			return api.Invalid("id", remedy, fmt.Sprintf("%q has %q at position %d", id, c, i+1))
		}
	}
	if strings.Contains(id, "..") {
		return api.Invalid("id", remedy, fmt.Sprintf("%q has two dots in a row", id))
	}
	return nil
}

// PeerOf reads who a certificate was issued to. It verifies nothing: use it on
// certificates that a handshake of this package, or VerifyChain, accepted.
func PeerOf(cert *x509.Certificate) (Peer, error) {
	// Exactly one name: a certificate with two could be read differently by
	// two readers.
	if len(cert.URIs) != 1 || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 {
		return Peer{}, fmt.Errorf("certificate has %d URI names and %d others, want one URI alone",
			len(cert.URIs), len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses))
	}
	u := cert.URIs[0]
	role, id, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if !ok {
		return Peer{}, fmt.Errorf("certificate name %q has no role and id", u)
	}
	p := Peer{Cluster: u.Host, Role: Role(role), ID: id}
	if _, err := ParseRole(role); err != nil {
		return Peer{}, fmt.Errorf("certificate name %q: %w", u, err)
	}
	if err := CheckID(id); err != nil {
		return Peer{}, fmt.Errorf("certificate name %q: %w", u, err)
	}
	// Rebuilt and compared, so that queries, user names, escapes and other
	// parts of a URI that were not looked at cannot be there.
	if p.String() != u.String() {
		return Peer{}, fmt.Errorf("certificate name %q is not in the form %s", u, p)
	}
	return p, nil
}

// PeerIdentity is who is at the other end of a connection made with a
// configuration of this package, where the handshake did the verifying. A
// connection without a client certificate gives CodeUnauthorized.
func PeerIdentity(cs *tls.ConnectionState) (Peer, error) {
	if cs == nil || !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Peer{}, &api.Error{Code: api.CodeUnauthorized, Message: "the connection shows no certificate",
			Remedy: "connect over TLS with this cluster's certificate"}
	}
	p, err := PeerOf(cs.PeerCertificates[0])
	if err != nil {
		return Peer{}, api.Wrap(api.CodeUnauthorized, err, "the certificate names no member of a cluster")
	}
	return p, nil
}
