package pki

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// AnyID lets a client accept every holder of the expected role.
const AnyID = "*"

// VerifyChain checks that ca certified leaf and that both are valid at now,
// and returns whom leaf names. It is what each handshake here does.
func VerifyChain(leaf, ca *x509.Certificate, now time.Time) (Peer, error) {
	cluster, err := clusterOf(ca)
	if err != nil {
		return Peer{}, api.Wrap(api.CodeUnauthorized, err, "authority not usable")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	// Both usages are asked for, one at a time, as Verify takes any of a list.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
		}); err != nil {
			return Peer{}, api.Wrap(api.CodeUnauthorized, err, "certificate not valid in this cluster")
		}
	}
	if leaf.IsCA {
		return Peer{}, api.Errorf(api.CodeUnauthorized, "an authority's certificate was shown as a process's")
	}
	p, err := PeerOf(leaf)
	if err != nil {
		return Peer{}, api.Wrap(api.CodeUnauthorized, err, "certificate names nobody")
	}
	if p.Cluster != cluster {
		return Peer{}, api.Errorf(api.CodeUnauthorized, "certificate names cluster %s, expected %s", p.Cluster, cluster)
	}
	return p, nil
}

// ServerConfig is for a server that accepts only clients of this cluster in
// one of the given roles. With no role it accepts nobody.
func ServerConfig(i *Identity, allowed ...Role) *tls.Config {
	c := i.serverBase()
	// Any, not Verify: the standard check wants a fixed pool of authorities
	// and knows no URI names. VerifyConnection does the whole of it, against
	// the authority of the moment, and also when a session were resumed.
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return i.verify(cs, func(p Peer) error { return roleIn(p, allowed) })
	}
	return c
}

// OptionalPeerConfig is for a server that also talks to those who have no
// certificate yet, such as a machine that joins. A client that shows one must
// pass as in ServerConfig. Handlers must ask PeerIdentity who it is before
// they do anything that is not for everybody.
func OptionalPeerConfig(i *Identity, allowed ...Role) *tls.Config {
	c := i.serverBase()
	c.ClientAuth = tls.RequestClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return i.verify(cs, func(p Peer) error { return roleIn(p, allowed) })
	}
	return c
}

// ClientConfig is for a client that expects a server of this cluster in a
// role, with the given id or AnyID. An empty id matches nobody.
func ClientConfig(i *Identity, role Role, id string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &i.current().tls, nil
		},
		// Skipped is the check of host names, which our certificates do not
		// have; VerifyConnection does the check of chain, role and id.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return i.verify(cs, func(p Peer) error {
				if p.Role != role || (id != AnyID && p.ID != id) {
					return api.Errorf(api.CodeForbidden, "the server is %s %q, expected %s %q", p.Role, p.ID, role, id)
				}
				return nil
			})
		},
	}
}

// JoinClientConfig is for the first connection of a machine that has nothing
// but a token. It accepts only a coordinator whose chain ends in the authority
// that the token names, so the token's secret goes to the true cluster alone.
func JoinClientConfig(t Token) *tls.Config { return joinClientConfig(t, time.Now) }

func joinClientConfig(t Token, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // see VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			ca, err := t.findCA(cs.PeerCertificates)
			if err != nil {
				return err
			}
			p, err := VerifyChain(cs.PeerCertificates[0], ca, now())
			if err != nil {
				return err
			}
			return roleIn(p, []Role{RoleCoordinator})
		},
	}
}

// CheckCA reports whether caPEM, as a join reply carries it, is the authority
// that the token names.
func (t Token) CheckCA(caPEM []byte) error {
	ca, err := parseCert(caPEM)
	if err != nil {
		return fmt.Errorf("authority of the join reply: %w", err)
	}
	_, err = t.findCA([]*x509.Certificate{nil, ca})
	return err
}

// findCA picks the authority out of a chain by the token's hash.
func (t Token) findCA(chain []*x509.Certificate) (*x509.Certificate, error) {
	for _, c := range chain[min(1, len(chain)):] {
		if sha256.Sum256(c.Raw) == t.CAHash {
			return c, nil
		}
	}
	return nil, &api.Error{Code: api.CodeUnauthorized, Field: "token",
		Message: "the server does not belong to the cluster of this token",
		Remedy:  "check the coordinator's address, and that the token was made by this cluster"}
}

// serverBase is what all our servers share.
func (i *Identity) serverBase() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &i.current().tls, nil
		},
		// A resumed session would carry on with a certificate seen long ago,
		// and connections here are kept open anyway.
		SessionTicketsDisabled: true,
	}
}

// verify checks the other side's certificate against the authority in use now.
func (i *Identity) verify(cs tls.ConnectionState, accept func(Peer) error) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("no certificate was shown")
	}
	p, err := VerifyChain(cs.PeerCertificates[0], i.current().ca, i.now())
	if err != nil {
		return err
	}
	return accept(p)
}

func roleIn(p Peer, allowed []Role) error {
	if !slices.Contains(allowed, p.Role) {
		return api.Errorf(api.CodeForbidden, "%s %q is not accepted here, only %v", p.Role, p.ID, allowed)
	}
	return nil
}
