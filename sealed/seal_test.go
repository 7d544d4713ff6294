package sealed_test

import (
	"bytes"
	"crypto"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

var now = time.UnixMilli(vectorNow)

func grantParams(tb testing.TB) sealed.GrantParams {
	return sealed.GrantParams{
		Role: sealed.RoleRequest, Recipient: newKey(tb, "function decrypt").PublicKey(), Sender: newKey(tb, "caller sign"),
		ReplyKey: newKey(tb, "caller decrypt").PublicKey(), Context: sealed.Digest{1}, Name: vectorName, NotBefore: now, NotAfter: now.Add(time.Hour),
	}
}

func newGrant(tb testing.TB) *sealed.Grant {
	tb.Helper()
	g, err := sealed.NewGrant(grantParams(tb))
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

var head = sealed.RequestHead{Method: "GET"}

func TestGrantsThatWouldBeRefusedAreNotMade(t *testing.T) {
	for want, change := range map[string]func(*sealed.GrantParams){
		"role":           func(p *sealed.GrantParams) { p.Role = 8 },
		"recipient":      func(p *sealed.GrantParams) { p.Recipient = sealed.PublicKey{} },
		"recipient: sea": func(p *sealed.GrantParams) { p.Recipient[1] ^= 1 },
		"sender":         func(p *sealed.GrantParams) { p.Sender = nil },
		"signing key":    func(p *sealed.GrantParams) { p.ReplyKey = newKey(t, "caller sign").PublicKey() },
		"reply key":      func(p *sealed.GrantParams) { p.ReplyKey[9] ^= 1 },
		"reply key: a":   func(p *sealed.GrantParams) { p.Role = sealed.RoleLog },
		"context":        func(p *sealed.GrantParams) { p.Context = sealed.Digest{} },
		"context: set":   func(p *sealed.GrantParams) { p.Role, p.ReplyKey = sealed.RoleDeposit, sealed.PublicKey{} },
		"name":           func(p *sealed.GrantParams) { p.Name = "echo" },
		"not after":      func(p *sealed.GrantParams) { p.NotAfter = p.NotBefore.Add(-time.Second) },
		"not before":     func(p *sealed.GrantParams) { p.NotBefore = time.Unix(-5, 0) },
		"window":         func(p *sealed.GrantParams) { p.NotAfter = p.NotBefore.Add(time.Hour + time.Second) },
		"draw the seed":  func(p *sealed.GrantParams) { p.Random = strings.NewReader("short") },
		"DER":            func(p *sealed.GrantParams) { p.Sender = badSigner{p.Sender} },
	} {
		p := grantParams(t)
		change(&p)
		if _, err := sealed.NewGrant(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that names %q, got %v", want, err)
		}
	}
}

type badSigner struct{ crypto.Signer }

func (badSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return []byte{0x30}, nil }

func TestMessagesThatWouldBeRefusedAreNotSealed(t *testing.T) {
	g := newGrant(t)
	for want, p := range map[string]sealed.MessageParams{
		"issued":        {},
		"issued: outsi": {Issued: now.Add(-time.Millisecond)},
		"issued: out":   {Issued: now.Add(time.Hour + time.Millisecond)},
		"life":          {Issued: now, Life: 5*time.Minute + time.Millisecond},
		"life: ":        {Issued: now, Life: -1},
		"life: 25h":     {Issued: now, Life: 25 * time.Hour, Flags: sealed.FlagQueued},
		"flags":         {Issued: now, Flags: 4},
		"link":          {Issued: now, Link: sealed.Link{1}},
	} {
		if _, _, _, err := g.AppendRequest(nil, p, head, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that names %q, got %v", want, err)
		}
	}
	if _, err := g.Seal(io.Discard, sealed.MessageParams{Issued: now}); err == nil {
		t.Error("a request without a head")
	}
	if _, err := g.AppendReply(nil, sealed.MessageParams{Issued: now, ID: sealed.ID{1}, Link: sealed.Link{1}}, sealed.ReplyHead{Status: 200}, nil); err == nil {
		t.Error("a reply under a request's grant")
	}
	g.Release()
	if _, err := g.SealRequest(io.Discard, sealed.MessageParams{Issued: now}, head); err == nil || !strings.Contains(err.Error(), "released") {
		t.Errorf("sealed under a released grant: %v", err)
	}
}

func TestAllWaysToSealGiveTheSameRecords(t *testing.T) {
	g := newGrant(t)
	h, err := head.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 65535 - len(h), 65536 - len(h), 65537 - len(h), 131072 - len(h), 200_000} {
		body := bytes.Repeat([]byte{7}, n)
		want := g.SealedLen(int64(len(h) + n))
		whole, _, _, err := g.AppendRequest([]byte("x"), sealed.MessageParams{Issued: now}, head, body)
		if err != nil || int64(len(whole)) != want+1 || whole[0] != 'x' {
			t.Fatalf("append %d: %d bytes, want %d, %v", n, len(whole), want+1, err)
		}
		for name, r := range map[string]io.Reader{"plain": bytes.NewReader(body), "slow": oneByOne{bytes.NewReader(body)}, "no WriterTo": struct{ io.Reader }{bytes.NewReader(body)}} {
			var out bytes.Buffer
			w, err := g.SealRequest(&out, sealed.MessageParams{Issued: now}, head)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := io.Copy(w, r); err != nil || m != int64(n) {
				t.Fatal(m, err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if int64(out.Len()) != want {
				t.Errorf("%s, %d bytes: %d sealed, want %d", name, n, out.Len(), want)
			}
		}
	}
}

func TestAbortedMessageHasNoEnd(t *testing.T) {
	g := newGrant(t)
	var out bytes.Buffer
	w, err := g.SealRequest(&out, sealed.MessageParams{Issued: now}, head)
	if err != nil {
		t.Fatal(err)
	}
	if w.Write([]byte("half")); w.Flush() != nil {
		t.Fatal("flush")
	}
	w.Abort()
	p, err := sealed.Peek(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if out.Bytes()[p.Len]&0x80 != 0 {
		t.Fatal("the record is final")
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("wrote after Abort")
	}
	if w.Close() == nil || w.Flush() == nil {
		t.Error("ended well after Abort")
	}
	if !w.Link().IsZero() {
		t.Error("the link outlived its writer")
	}
}

func TestFailedWriteStays(t *testing.T) {
	g := newGrant(t)
	broken := errors.New("pipe")
	w, err := g.SealRequest(brokenWriter{broken}, sealed.MessageParams{Issued: now}, head)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, broken) {
		t.Fatal(err)
	}
}

type brokenWriter struct{ err error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.err }

func TestSaltsAndIDsDoNotRepeat(t *testing.T) {
	// Random, restored from a snapshot, repeats; counter and instance do not.
	p := grantParams(t)
	p.Random = repeat(7)
	seen := map[[24]byte]bool{}
	for _, instance := range []string{"a", "b"} {
		p.Salts = sealed.NewSalts([]byte(instance))
		g, err := sealed.NewGrant(p)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			_, h, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: now}, head, nil)
			if err != nil {
				t.Fatal(err)
			}
			if seen[h.Salt] {
				t.Fatal("a salt repeats")
			}
			seen[h.Salt] = true
		}
	}
}

func TestPeekReadsTheClearPart(t *testing.T) {
	g := newGrant(t)
	b, h, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: now, Flags: sealed.FlagQueued}, head, []byte("body"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := sealed.Peek(b[:min(len(b), sealed.MaxPeek)])
	if err != nil || p.Grant != g.Header() || p.Message != h || p.Message.Grant != g.Digest() {
		t.Fatalf("%+v, %v", p, err)
	}
	for n := range p.Len {
		if _, err := sealed.Peek(b[:n]); !errors.Is(err, sealed.CodeTruncated) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	if _, err := sealed.Peek([]byte("GET / HTTP/1.1")); !errors.Is(err, sealed.CodeFormat) {
		t.Fatal(err)
	}
	b[202+len(vectorName)] = 0xff // enc_len
	if _, err := sealed.Peek(b); !errors.Is(err, sealed.CodeFormat) {
		t.Fatal(err)
	}
}

func FuzzPeek(f *testing.F) {
	b, _, _, err := newGrant(f).AppendRequest(nil, sealed.MessageParams{Issued: now}, head, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := sealed.Peek(b)
		if err == nil && (p.Len > len(b) || p.Len > sealed.MaxPeek || !p.Grant.Role.Valid() || strings.Count(p.Grant.Name, ".") != 1) {
			t.Fatalf("%+v", p)
		}
		if err != nil && sealed.CodeOf(err) != sealed.CodeFormat && sealed.CodeOf(err) != sealed.CodeTruncated {
			t.Fatal(err)
		}
	})
}

func TestReplaySetRemembersUntilExpiry(t *testing.T) {
	clock := now
	s, err := sealed.NewReplaySet(sealed.ReplayConfig{Size: 3, Clock: func() time.Time { return clock }})
	if err != nil {
		t.Fatal(err)
	}
	add := func(id byte, life time.Duration) error {
		return s.Add(sealed.Digest{1}, sealed.ID{id}, uint64(now.Add(life).UnixMilli()))
	}
	for _, c := range []struct {
		id   byte
		life time.Duration
		want sealed.Code
	}{
		{1, time.Second, ""}, {1, time.Second, sealed.CodeReplay}, {2, 10 * time.Second, ""}, {3, -time.Millisecond, sealed.CodeWindow},
		{3, 24 * time.Hour, ""}, {4, time.Second, sealed.CodeReplay}, // full
	} {
		if err := add(c.id, c.life); sealed.CodeOf(err) != c.want {
			t.Fatalf("id %d: %v, want %q", c.id, err, c.want)
		}
	}
	clock = now.Add(2 * time.Second) // the first is forgotten, and refused by its time
	if err := add(1, time.Second); !errors.Is(err, sealed.CodeWindow) {
		t.Fatal(err)
	}
	if err := add(4, 20*time.Second); err != nil || s.Len() != 3 {
		t.Fatal(err, s.Len())
	}
	clock = now.Add(-time.Hour) // the set's clock stands at its highest
	if s.Now() != uint64(now.Add(2*time.Second).UnixMilli()) {
		t.Fatal("the high-water mark went back")
	}
	if err := add(2, 10*time.Second); !errors.Is(err, sealed.CodeReplay) {
		t.Fatal(err)
	}
	clock = now.Add(100 * 365 * 24 * time.Hour) // a leap is swept without counting its seconds
	if err := s.Add(sealed.Digest{}, sealed.ID{}, uint64(clock.UnixMilli())); err != nil || s.Len() != 1 {
		t.Fatal(err, s.Len())
	}
	if _, err := sealed.NewReplaySet(sealed.ReplayConfig{Size: -1}); err == nil {
		t.Fatal("a negative size was taken")
	}
}

func TestReplaySetTakesEachMessageOnce(t *testing.T) {
	s, err := sealed.NewReplaySet(sealed.ReplayConfig{Clock: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				if s.Add(sealed.Digest{1}, sealed.ID{byte(i), byte(i >> 8)}, vectorNow) == nil {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if taken.Load() != 500 || s.Len() != 500 {
		t.Fatalf("%d taken, %d kept", taken.Load(), s.Len())
	}
}
