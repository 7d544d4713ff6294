package keybroker

import (
	"sync"
	"time"
)

// Rate is a token bucket.
type Rate struct {
	PerSecond float64
	Burst     float64
}

// DefaultNodeRate lets one node start 50 sandboxes a second, and 200 at once
// after a pause: more than it can make, and far less than would hurt others.
func DefaultNodeRate() Rate { return Rate{PerSecond: 50, Burst: 200} }

// limiter holds one bucket per node. Nodes are those with a certificate of the
// cluster, so their number is bounded by its authority.
type limiter struct {
	rate Rate
	now  func() time.Time
	mu   sync.Mutex
	of   map[string]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newLimiter(r Rate, now func() time.Time) *limiter {
	return &limiter{rate: r, now: now, of: make(map[string]*bucket)}
}

// allow takes one token of node's bucket.
func (l *limiter) allow(node string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b, known := l.of[node]
	if !known {
		b = &bucket{tokens: l.rate.Burst, at: now}
		l.of[node] = b
	}
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.tokens = min(l.rate.Burst, b.tokens+d*l.rate.PerSecond)
		b.at = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
