package manifest

import "unsafe"

// Wipe zeroes all of m, its texts' bytes included. It is for a manifest that
// Decode made: nothing else may refer to its texts.
func (m *Manifest) Wipe() {
	n := &m.Needs
	for i := range n.Constraints {
		wipeText(n.Constraints[i].Key)
		wipeText(n.Constraints[i].Value)
	}
	for _, a := range n.Architectures {
		wipeText(a)
	}
	for _, c := range m.Retry.Codes {
		wipeText(c)
	}
	clear(n.Constraints)
	clear(n.Ports)
	clear(n.Allow)
	clear(n.Architectures)
	clear(m.Retry.Codes)
	*m = Manifest{}
}

// wipeText zeroes a string that a decoder made for us alone. Those of one byte
// are the runtime's, in memory that is not written.
func wipeText(s string) {
	if len(s) > 1 {
		clear(unsafe.Slice(unsafe.StringData(s), len(s)))
	}
}
