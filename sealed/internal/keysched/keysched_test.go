package keysched

import (
	"bytes"
	"crypto/hkdf"
	"sync"
	"testing"

	"github.com/emmansun/gmsm/sm3"
)

// plain is the key schedule written out with the standard library's HKDF.
func plain(t *testing.T, grant, pub, seed, link, bound []byte) []byte {
	t.Helper()
	h := sm3.Sum(append(append([]byte(nil), grant...), pub...))
	prk, err := hkdf.Extract(sm3.New, append(append([]byte(nil), seed...), link...), append([]byte("faasd-sec/v1 prk\x00"), h[:]...))
	if err != nil {
		t.Fatal(err)
	}
	okm, err := hkdf.Expand(sm3.New, prk, "faasd-sec/v1 msg\x00"+string(bound), 92)
	if err != nil {
		t.Fatal(err)
	}
	return okm
}

func TestMatchesPlainHKDF(t *testing.T) {
	grant, pub, bound := bytes.Repeat([]byte{7}, 420), bytes.Repeat([]byte{8}, 65), bytes.Repeat([]byte{9}, BoundSize)
	seed, link := [32]byte{1}, [32]byte{2}
	for links, l := range map[Links]*[32]byte{NoLinks: nil, MakesLinks: nil, TakesLinks: &link} {
		s := New(grant, pub, &seed, links)
		var with []byte
		if l != nil {
			with = l[:]
		}
		want := plain(t, grant, pub, seed[:], with, bound)
		if links != MakesLinks {
			clear(want[60:])
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				var k Keys
				if err := s.Derive(&k, bound, l); err != nil {
					t.Error(err)
				}
				got := append(append(append(append([]byte(nil), k.Key[:]...), k.Nonce[:]...), k.Commit[:]...), k.Export[:]...)
				if !bytes.Equal(got, want) {
					t.Errorf("links %d: %x, want %x", links, got, want)
				}
			})
		}
		wg.Wait()
	}
}

func TestLinkMustFitTheSchedule(t *testing.T) {
	var k Keys
	bound := make([]byte, BoundSize)
	if New(nil, nil, new([32]byte), TakesLinks).Derive(&k, bound, nil) == nil ||
		New(nil, nil, new([32]byte), MakesLinks).Derive(&k, bound, new([32]byte)) == nil ||
		New(nil, nil, new([32]byte), NoLinks).Derive(&k, bound[1:], nil) == nil {
		t.Fatal("a schedule took what does not fit it")
	}
}

func TestWipeLeavesNothing(t *testing.T) {
	s := New([]byte("g"), []byte("p"), &[32]byte{1}, MakesLinks)
	s.Wipe()
	if *s != (Schedule{}) {
		t.Fatal("something is left")
	}
}

func TestRecordNonceCounts(t *testing.T) {
	base := [12]byte{1, 2, 3, 4, 0xff, 0, 0, 0, 0, 0, 0, 0xff}
	var n [12]byte
	RecordNonce(&n, &base, 0)
	if n != base {
		t.Fatal("counter 0 changed the nonce")
	}
	RecordNonce(&n, &base, 0x0100)
	if n != [12]byte{1, 2, 3, 4, 0xff, 0, 0, 0, 0, 0, 1, 0xff} {
		t.Fatalf("%x", n)
	}
}
