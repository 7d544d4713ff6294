package reqauth

import (
	"container/heap"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// The memory of nonces is bounded in all and for each key, so that one caller
// cannot lock the others out; about 12 MB when full.
const (
	maxNonces       = 1 << 16
	maxNoncesPerKey = 1 << 12
)

type nonceKey struct {
	signer sealed.Fingerprint
	nonce  string
}

// nonces remembers (signer, nonce) until the request's time has left the window.
type nonces struct {
	mu      sync.Mutex
	max     int
	perKey  int
	high    time.Time // a clock set back must not open old requests again
	entries map[nonceKey]struct{}
	count   map[sealed.Fingerprint]int
	queue   expiryQueue
}

func newNonces(most, perKey int) *nonces {
	return &nonces{max: most, perKey: perKey,
		entries: make(map[nonceKey]struct{}), count: make(map[sealed.Fingerprint]int)}
}

// add refuses a pair it remembers, one that its clock has left behind, and any
// pair when it is full: forgetting early would let a replay through.
func (n *nonces) add(signer sealed.Fingerprint, nonce string, expires, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.After(n.high) {
		n.high = now
	}
	for len(n.queue) > 0 && n.queue[0].expires.Before(n.high) {
		n.drop(heap.Pop(&n.queue).(expiring).key)
	}
	k := nonceKey{signer, nonce}
	if _, seen := n.entries[k]; seen || expires.Before(n.high) {
		return errReplay()
	}
	if len(n.entries) >= n.max || n.count[signer] >= n.perKey {
		return errFull()
	}
	n.entries[k] = struct{}{}
	n.count[signer]++
	heap.Push(&n.queue, expiring{k, expires})
	return nil
}

func (n *nonces) drop(k nonceKey) {
	delete(n.entries, k)
	if n.count[k.signer]--; n.count[k.signer] == 0 {
		delete(n.count, k.signer)
	}
}

type expiring struct {
	key     nonceKey
	expires time.Time
}

// expiryQueue is a heap with the first to expire on top.
type expiryQueue []expiring

func (q expiryQueue) Len() int           { return len(q) }
func (q expiryQueue) Less(i, j int) bool { return q[i].expires.Before(q[j].expires) }
func (q expiryQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *expiryQueue) Push(x any)        { *q = append(*q, x.(expiring)) }
func (q *expiryQueue) Pop() any {
	old := *q
	last := len(old) - 1
	x := old[last]
	*q = old[:last]
	return x
}
