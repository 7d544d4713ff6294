package wire

import (
	"bytes"
	"testing"
)

func sample() Grant {
	g := Grant{Suite: 1, Role: 1, Name: "echo.demo", NotBefore: 5, NotAfter: 6, Enc: []byte("enc"), Sig: []byte("sig")}
	g.Sender[0], g.ReplyKey[0], g.ReplyKey[1] = 4, 4, 1
	return g
}

func encode(g *Grant) []byte {
	b := g.AppendUnsigned(nil)
	return append(append(b, byte(len(g.Sig))), g.Sig...)
}

func TestExtentAsksForWhatItNeeds(t *testing.T) {
	g := sample()
	b := encode(&g)
	for n := range len(b) {
		need, have, bad := Extent(b[:n])
		if have || bad || need <= n || need > len(b) {
			t.Fatalf("%d bytes: need %d, have %t, bad %t", n, need, have, bad)
		}
	}
	if n, have, bad := Extent(append(b, "more"...)); n != len(b) || !have || bad {
		t.Fatal(n, have, bad)
	}
	if _, _, bad := Extent([]byte("FSX")); !bad {
		t.Fatal("a wrong beginning was taken")
	}
}

// FuzzGrant: whatever is taken encodes to the same bytes again.
func FuzzGrant(f *testing.F) {
	g := sample()
	f.Add(encode(&g))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, have, bad := Extent(b)
		if !have || bad {
			return
		}
		g, wrong := ParseGrant(b[:n])
		if wrong == "" && !bytes.Equal(encode(&g), b[:n]) {
			t.Fatalf("%x", b[:n])
		}
	})
}

// FuzzMessage: whatever is taken encodes to the same bytes again.
func FuzzMessage(f *testing.F) {
	m := Message{Issued: 1, Expires: 2, Flags: 3}
	f.Add(append(m.AppendBound(nil), m.Commit[:]...), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, role uint8) {
		if len(b) < MessageSize {
			return
		}
		m, wrong := ParseMessage(b, role)
		if wrong == "" && !bytes.Equal(append(m.AppendBound(nil), m.Commit[:]...), b[:MessageSize]) {
			t.Fatalf("%x", b)
		}
	})
}
