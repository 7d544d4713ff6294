package sealed

import "time"

func ms(d time.Duration) uint64 { return uint64(d / time.Millisecond) }

// CheckWindow is the format's "window" row, and refuses with CodeWindow. What it
// looks at is in clear, so that whoever remembers messages by Peek can refuse
// those that no reader would take, however far away they claim to expire.
// maxQueued is the function's max age; now is in unix milliseconds. Differences
// that would be negative are refused before they are taken, and no product is
// formed that could overflow.
func CheckWindow(g *GrantHeader, m *MessageHeader, maxQueued time.Duration, now uint64) error {
	late := func(detail string) error { return refuse(CodeWindow, detail) }
	if g.NotBefore > g.NotAfter {
		return late("not_before lies after not_after")
	}
	if g.Role.ShortWindow() && g.NotAfter-g.NotBefore > uint64(MaxGrantWindow/time.Second) {
		return late("the grant's window is longer than an hour")
	}
	if !g.Covers(m.Issued) {
		return late("issued outside the grant's window")
	}
	if m.Expires < m.Issued {
		return late("expires before it was issued")
	}
	limit := ms(MaxLife)
	if m.Flags&FlagQueued != 0 {
		limit = ms(min(maxQueued, MaxQueuedLife))
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
	if m.Issued > now && m.Issued-now > ms(MaxClockLead) {
		return late("issued in the future")
	}
	if now > m.Expires {
		return late("expired")
	}
	return nil
}
