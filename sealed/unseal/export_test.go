package unseal

// HeldBytes returns the size of the buffers that Hold took.
func (m *Message) HeldBytes() int {
	n := 0
	for _, c := range m.chunks {
		n += len(c.buf)
	}
	return n
}
