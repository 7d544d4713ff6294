package unseal

import (
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

func ms(d time.Duration) uint64 { return uint64(d / time.Millisecond) }

// checkWindow is the format's "window" row. Differences that would be negative
// are refused before they are taken, and no product is formed that could
// overflow. now is in unix milliseconds.
func checkWindow(g *sealed.GrantHeader, m *sealed.MessageHeader, maxQueued time.Duration, now uint64) error {
	late := func(detail string) error { return refuse(sealed.CodeWindow, detail) }
	if g.NotBefore > g.NotAfter {
		return late("not_before lies after not_after")
	}
	if g.Role.ShortWindow() && g.NotAfter-g.NotBefore > uint64(sealed.MaxGrantWindow/time.Second) {
		return late("the grant's window is longer than an hour")
	}
	if !g.Covers(m.Issued) {
		return late("issued outside the grant's window")
	}
	if m.Expires < m.Issued {
		return late("expires before it was issued")
	}
	limit := ms(sealed.MaxLife)
	if m.Flags&sealed.FlagQueued != 0 {
		limit = ms(min(maxQueued, sealed.MaxQueuedLife))
		if limit == 0 {
			return late("the function takes no queued requests")
		}
	}
	if m.Expires-m.Issued > limit {
		return late("lives longer than is allowed")
	}
	if !g.Role.Timed() {
		return nil
	}
	if m.Issued > now && m.Issued-now > ms(sealed.MaxClockLead) {
		return late("issued in the future")
	}
	if now > m.Expires {
		return late("expired")
	}
	return nil
}
