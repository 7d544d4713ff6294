package sealed

import "testing"

// TestFreedOpeningsHoldNothing: they are pooled, and held a seed and keys.
func TestFreedOpeningsHoldNothing(t *testing.T) {
	o := new(opening)
	for _, b := range [][]byte{o.bound[:], o.keys.Key[:], o.keys.Export[:], o.link[:], o.nonce[:], o.drawn[:], o.salt[:], o.head[:]} {
		for i := range b {
			b[i] = 1
		}
	}
	o.free()
	if *o != (opening{}) {
		t.Fatal("something is left")
	}
}

// TestSaltsLeaveNothingBehind: what a salt is hashed from has the seed in it,
// wherever there was room for it.
func TestSaltsLeaveNothingBehind(t *testing.T) {
	seed, drawn := [32]byte{1}, [saltRandom]byte{2}
	var first, second [24]byte
	s := NewSalts([]byte("instance"))
	var room [saltFixed + 64]byte
	s.fill(&first, room[:0], seed[:], drawn[:])
	if room != [len(room)]byte{} {
		t.Fatal("something is left")
	}
	s.fill(&second, nil, seed[:], drawn[:])
	if first == second {
		t.Fatal("one salt twice: the counter does not count")
	}
}
