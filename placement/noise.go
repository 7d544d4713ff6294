package placement

// idHash is FNV-1a over the node's ID
// (http://www.isthe.com/chongo/tech/comp/fnv/). It needs no strength: whoever
// may name nodes may also report any load.
func idHash(id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h ^= uint64(id[i])
		h *= 1099511628211
	}
	return h
}

// noise is a number in [0, 1) that depends on the seed and the node only.
func noise(seed, id uint64) float64 {
	return float64(mix(seed^mix(id))>>11) / (1 << 53)
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable
// pseudorandom number generators, OOPSLA 2014): every input bit flips about half
// of the output bits.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
