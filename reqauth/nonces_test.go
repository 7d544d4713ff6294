package reqauth

import (
	"fmt"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestNoncesAreBoundedAndRefuseWhenFull(t *testing.T) {
	n := newNonces(10, 4)
	now := time.Unix(1000, 0)
	add := func(who byte, nonce string) api.Code {
		return api.CodeOf(n.add(sealed.Fingerprint{who}, nonce, now.Add(Window), now))
	}
	for i := range 4 {
		if c := add(1, fmt.Sprint(i)); c != "" {
			t.Fatalf("nonce %d: %s", i, c)
		}
	}
	if c := add(1, "4"); c != api.CodeBusy {
		t.Fatalf("beyond the share of a key: %q", c)
	}
	for i := range 6 {
		if c := add(byte(2+i/3), fmt.Sprint(i)); c != "" {
			t.Fatalf("another key's nonce %d: %s", i, c)
		}
	}
	if c := add(9, "x"); c != api.CodeBusy {
		t.Fatalf("beyond the bound: %q", c)
	}
	now = now.Add(Window + time.Second)
	if c := add(9, "x"); c != "" {
		t.Fatalf("after expiry: %q", c)
	}
	if len(n.entries) != 1 || len(n.queue) != 1 || len(n.count) != 1 {
		t.Fatalf("%d entries, %d queued, %d keys remain", len(n.entries), len(n.queue), len(n.count))
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add(Scheme + " key=04, ts=1, nonce=0, body=unsigned, sig=30")
	f.Add(Scheme + " a=b,, =c")
	f.Fuzz(func(t *testing.T, h string) {
		p, err := parseHeader(h)
		if err != nil {
			return
		}
		// What parses has one spelling: nothing a signature covers is ambiguous.
		if again, err := parseHeader(p.header()); err != nil || again.header() != p.header() {
			t.Errorf("%q parses as %q", h, p.header())
		}
	})
}
