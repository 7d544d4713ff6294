package attest

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"sync"
	"time"
)

const (
	// verifiedPerNode bounds the signatures that are remembered of one node; a
	// node's new ones take the place of its own oldest ones. Several times what a
	// pool holds, at about 150 bytes each.
	verifiedPerNode = 512
	// verifiedNodes bounds the nodes. Those are enrolled ones, whose certificate
	// was verified before.
	verifiedNodes = 4096
)

// verified remembers which signatures verified, for MaxAge. That a signature is
// good follows from key, digest and signature alone, whoever asks and when; all
// three are in what it is remembered by. Only good ones are, so that what is not
// found is verified, and what was lost as well.
type verified struct {
	mu   sync.Mutex
	node map[string]*verifiedOf
}

type verifiedOf struct {
	at    map[[32]byte]time.Time
	order [][32]byte // a ring once it is full
	next  int
	last  time.Time
}

// check is ecdsa.VerifyASN1, the arithmetic left out where it was done for the
// same bytes lately.
func (v *verified) check(node string, pub *ecdsa.PublicKey, digest, sig []byte, now time.Time) bool {
	key, err := verifiedKey(pub, digest, sig)
	if err != nil {
		return false
	}
	if v.has(node, key, now) {
		return true
	}
	if !ecdsa.VerifyASN1(pub, digest, sig) {
		return false
	}
	v.add(node, key, now)
	return true
}

// verifiedKey hashes what a verdict follows from. Key and digest have fixed
// lengths, so that no two triples are the same bytes.
func verifiedKey(pub *ecdsa.PublicKey, digest, sig []byte) (key [32]byte, err error) {
	point, err := pub.Bytes()
	if err != nil {
		return key, err
	}
	h := sha256.New()
	h.Write(point)
	h.Write(digest)
	h.Write(sig)
	h.Sum(key[:0])
	return key, nil
}

func (v *verified) has(node string, key [32]byte, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	of := v.node[node]
	if of == nil {
		return false
	}
	at, ok := of.at[key]
	return ok && recent(at, now)
}

// recent is false also for what lies ahead: the clock was set back, and nobody
// knows how long ago that was.
func recent(at, now time.Time) bool { return !now.Before(at) && now.Sub(at) <= MaxAge }

func (v *verified) add(node string, key [32]byte, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	of := v.node[node]
	if of == nil {
		if of = v.admit(node, now); of == nil {
			return
		}
	}
	of.last = now
	if _, known := of.at[key]; known {
		of.at[key] = now
		return
	}
	if len(of.order) < verifiedPerNode {
		of.order = append(of.order, key)
	} else {
		delete(of.at, of.order[of.next])
		of.order[of.next] = key
		of.next = (of.next + 1) % verifiedPerNode
	}
	of.at[key] = now
}

// admit makes room for one more node, or does without: nobody else's entries are
// given up for it while they are of use. mu is held.
func (v *verified) admit(node string, now time.Time) *verifiedOf {
	if len(v.node) >= verifiedNodes {
		for n, of := range v.node {
			if !recent(of.last, now) {
				delete(v.node, n)
			}
		}
		if len(v.node) >= verifiedNodes {
			return nil
		}
	}
	if v.node == nil {
		v.node = make(map[string]*verifiedOf)
	}
	of := &verifiedOf{at: make(map[[32]byte]time.Time)}
	v.node[node] = of
	return of
}
