package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// chainLife is for how long a certificate that VerifyChain took need not go
	// through it again.
	chainLife = 5 * time.Minute
	// maxChains bounds the certificates that are remembered, one per peer.
	maxChains = 4096
)

// Chains verifies certificates as VerifyChain does, and remembers for a few
// minutes those that passed. What can change meanwhile is looked at each time:
// the clock against leaf and authority, and which authority is asked for. Its
// zero value is ready, and safe for concurrent use.
type Chains struct {
	mu     sync.Mutex
	byHash map[[sha256.Size]byte]*chain
	byPeer map[Peer][sha256.Size]byte // one certificate per peer: who renews often displaces its own
}

type chain struct {
	leaf *x509.Certificate
	ca   *x509.Certificate
	peer Peer
	at   time.Time
}

// Verify parses der and checks it against ca at now. The certificate that it
// returns is shared: it must not be changed.
func (c *Chains) Verify(der []byte, ca *x509.Certificate, now time.Time) (Peer, *x509.Certificate, error) {
	hash := sha256.Sum256(der)
	c.mu.Lock()
	known := c.byHash[hash]
	c.mu.Unlock()
	if known != nil && known.holds(ca, now) {
		return known.peer, known.leaf, nil
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return Peer{}, nil, api.Errorf(api.CodeUnauthorized, "the certificate does not parse")
	}
	p, err := VerifyChain(leaf, ca, now)
	if err != nil {
		return Peer{}, nil, err
	}
	c.keep(hash, &chain{leaf: leaf, ca: ca, peer: p, at: now})
	return p, leaf, nil
}

// holds reports whether VerifyChain would find the same now.
func (c *chain) holds(ca *x509.Certificate, now time.Time) bool {
	return (c.ca == ca || bytes.Equal(c.ca.Raw, ca.Raw)) && c.recent(now) && valid(c.leaf, now) && valid(ca, now)
}

// recent is false for what lies ahead too: the clock was set back.
func (c *chain) recent(now time.Time) bool {
	return !now.Before(c.at) && now.Sub(c.at) <= chainLife
}

func valid(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

func (c *Chains) keep(hash [sha256.Size]byte, ch *chain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byHash == nil {
		c.byHash, c.byPeer = make(map[[sha256.Size]byte]*chain), make(map[Peer][sha256.Size]byte)
	}
	if old, ok := c.byPeer[ch.peer]; ok {
		delete(c.byHash, old)
	} else if len(c.byPeer) >= maxChains {
		for h, old := range c.byHash {
			if !old.recent(ch.at) {
				delete(c.byHash, h)
				delete(c.byPeer, old.peer)
			}
		}
		if len(c.byPeer) >= maxChains {
			return
		}
	}
	c.byHash[hash], c.byPeer[ch.peer] = ch, hash
}
