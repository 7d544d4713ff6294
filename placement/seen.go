package placement

// seen is the set of nodes a scan has looked at. It is a short list while few
// were looked at, so that the usual request does not clear memory for every node
// of a large cluster, and a bitmap after that.
type seen struct {
	few  [512]int32
	n    int
	hash [1024]uint16 // open addressing over few: position + 1, 0 is free
	bits []uint64
}

// add reports whether node i, of the given number in all, was not there before.
func (s *seen) add(i int32, all int) bool {
	if s.bits == nil && s.n == len(s.few) {
		s.bits = make([]uint64, (all+63)/64)
		for _, j := range s.few {
			s.bits[j/64] |= 1 << (j % 64)
		}
	}
	if s.bits != nil {
		if s.bits[i/64]&(1<<(i%64)) != 0 {
			return false
		}
		s.bits[i/64] |= 1 << (i % 64)
		return true
	}
	at := uint32(i) * 2654435769 >> 22 // Knuth's multiplicative hash to 10 bits
	for s.hash[at] != 0 {
		if s.few[s.hash[at]-1] == i {
			return false
		}
		at = (at + 1) % uint32(len(s.hash))
	}
	s.few[s.n] = i
	s.n++
	s.hash[at] = uint16(s.n)
	return true
}
