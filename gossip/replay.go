package gossip

const (
	// windowSize is how far behind the newest packet of its sender one may
	// arrive. Gossip loses nothing when a packet that late is dropped.
	windowSize = 256
	// guardSenders is how many salts each of the two generations holds.
	guardSenders = 8192
)

// window remembers which of the last windowSize counters of one salt were seen
// (RFC 4303, 3.4.3).
type window struct {
	next uint64 // one more than the highest counter seen
	seen [windowSize / 64]uint64
}

func (w *window) admit(n uint64) bool {
	if n+windowSize < w.next {
		return false
	}
	if n >= w.next {
		if n-w.next >= windowSize {
			w.seen = [windowSize / 64]uint64{}
		} else {
			for i := w.next; i <= n; i++ {
				w.seen[i%windowSize/64] &^= 1 << (i % 64)
			}
		}
		w.next = n + 1
	} else if w.seen[n%windowSize/64]&(1<<(n%64)) != 0 {
		return false
	}
	w.seen[n%windowSize/64] |= 1 << (n % 64)
	return true
}

// replayGuard holds the windows of the salts heard of late. It forgets whole
// generations, so it is bounded and needs no clock; a salt in use moves to the
// young one. A packet of a forgotten salt would be admitted once more: that takes
// more than guardSenders other salts in between, each of a live process that
// holds the key.
type replayGuard struct {
	young, old map[[saltSize]byte]*window
}

func (g *replayGuard) admit(salt [saltSize]byte, n uint64) bool {
	w := g.young[salt]
	if w == nil {
		if w = g.old[salt]; w == nil {
			w = &window{}
		}
		if g.young == nil || len(g.young) >= guardSenders {
			g.old, g.young = g.young, make(map[[saltSize]byte]*window)
		}
		g.young[salt] = w
	}
	return w.admit(n)
}
