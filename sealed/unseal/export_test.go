package unseal

import "github.com/faasd-sec/faasd-sec/sealed/internal/keysched"

// HeldBytes returns the size of the buffers that Hold took.
func (m *Message) HeldBytes() int {
	n := 0
	for _, c := range m.chunks {
		n += len(c.buf)
	}
	return n
}

// Wiped reports whether nothing of what the grant's seed gave is left.
func (a *Ahead) Wiped() bool { return *a.entry.schedule == keysched.Schedule{} }
