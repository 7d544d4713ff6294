package openfaas

import (
	"net/netip"
	"sync"
	"time"
)

// A password that is wrong costs its address a guess, of which it has so many, and
// one more each second.
const (
	mostGuesses  = 60
	guessEvery   = time.Second
	mostGuessers = 4096 // addresses that are remembered; all others share one
)

// guesses counts failures by address. Its memory is bounded.
type guesses struct {
	now func() time.Time

	mu sync.Mutex
	by map[netip.Addr]time.Time // when the address will have all its guesses again
}

func newGuesses(now func() time.Time) *guesses {
	return &guesses{now: now, by: map[netip.Addr]time.Time{}}
}

// judge takes one look at credentials from an address: ok tells whether they were
// right. It returns how long the address has to wait where it has no guess left,
// whatever the credentials were, and 0 otherwise.
func (g *guesses) judge(from netip.Addr, ok bool) time.Duration {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	full, known := g.by[from]
	if !known && len(g.by) >= mostGuessers {
		g.forget(now)
		if len(g.by) >= mostGuessers {
			from = netip.Addr{}
			full = g.by[from]
		}
	}
	if full.Before(now) {
		full = now
	}
	if wait := full.Sub(now) - (mostGuesses-1)*guessEvery; wait > 0 {
		return wait
	}
	if !ok {
		g.by[from] = full.Add(guessEvery)
	}
	return 0
}

// forget drops the addresses that have all their guesses.
func (g *guesses) forget(now time.Time) {
	for a, full := range g.by {
		if !full.After(now) {
			delete(g.by, a)
		}
	}
}
