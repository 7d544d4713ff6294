package unseal_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// openBoth opens b with and without a warm cache: a cached grant must not skip a
// check. The two must agree on the code.
func openBoth(t *testing.T, w *world, cold, warm *unseal.Opener, b []byte) sealed.Code {
	t.Helper()
	got, err := readAll(cold, b, w.wantRequest())
	if err == nil {
		t.Fatalf("opened: %q", got)
	}
	if got != nil {
		t.Fatalf("handed on %q before refusing with %v", got, err)
	}
	if _, again := readAll(warm, b, w.wantRequest()); sealed.CodeOf(again) != sealed.CodeOf(err) {
		t.Fatalf("cold refuses with %v, warm with %v", err, again)
	}
	return sealed.CodeOf(err)
}

// coldAndWarm makes two openers, the second one with g in its cache.
func coldAndWarm(t *testing.T, w *world, g *sealed.Grant) (cold, warm *unseal.Opener) {
	t.Helper()
	cold, warm = w.opener(t, w.fn.Decrypter(), false), w.opener(t, w.fn.Decrypter(), true)
	first, _, _ := w.request(t, g, 0, nil)
	if _, err := readAll(warm, first, w.wantRequest()); err != nil {
		t.Fatal(err)
	}
	return cold, warm
}

func TestEveryFlippedBitOfTheHeadersIsRefused(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	cold, warm := coldAndWarm(t, w, g)
	b, _, _ := w.request(t, g, 0, []byte("body"))
	p, err := sealed.Peek(b)
	if err != nil {
		t.Fatal(err)
	}
	grant := p.Len - 125
	// One message id is used for all: replay comes after what a flip can change.
	for at := range p.Len {
		for _, bit := range []byte{1, 0x80} {
			bad := slices.Clone(b)
			bad[at] ^= bit
			code := openBoth(t, w, cold, warm, bad)
			var allowed []sealed.Code
			switch {
			case at < grant:
				// The message's digest of the grant is wrong: format, unless a length
				// now reaches beyond the end.
				allowed = []sealed.Code{sealed.CodeFormat, sealed.CodeTruncated}
			case at < grant+4, at >= grant+61 && at < grant+93: // magic, grant digest
				allowed = []sealed.Code{sealed.CodeFormat}
			case at < grant+20, at >= grant+37: // id, salt, commitment
				allowed = []sealed.Code{sealed.CodeCommitment}
			case at == grant+36: // flags: bit 0 is known, bit 7 is not
				allowed = []sealed.Code{map[byte]sealed.Code{1: sealed.CodeCommitment, 0x80: sealed.CodeFormat}[bit]}
			default: // issued, expires
				allowed = []sealed.Code{sealed.CodeWindow, sealed.CodeCommitment}
			}
			if !slices.Contains(allowed, code) {
				t.Errorf("byte %d (message %d), bit %#x: %s, want one of %v", at, at-grant, bit, code, allowed)
			}
		}
	}
	for at := p.Len; at < len(b); at++ {
		g, _, _ := w.request(t, g, 0, []byte("body")) // refused at its record, a message is used up
		g[at] ^= 1
		code := openBoth(t, w, cold, warm, g)
		if code != sealed.CodeRecord && code != sealed.CodeTruncated {
			t.Errorf("record byte %d: %s", at-p.Len, code)
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	for _, flags := range []sealed.Flags{0, sealed.FlagEarlyInput} {
		cold, warm := coldAndWarm(t, w, g)
		b, _, _ := w.request(t, g, flags, []byte("body"))
		p, err := sealed.Peek(b)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(b) {
			if n >= p.Len { // the header was accepted: each try needs a message of its own
				if b, _, _ = w.request(t, g, flags, []byte("body")); len(b) <= n {
					continue // signatures vary in length
				}
			}
			if code := openBoth(t, w, cold, warm, b[:n]); code != sealed.CodeTruncated {
				t.Fatalf("%d of %d bytes: %s", n, len(b), code)
			}
		}
		b, _, _ = w.request(t, g, flags, []byte("body"))
		if code := openBoth(t, w, cold, warm, append(b, 0)); code != sealed.CodeTruncated {
			t.Fatalf("a byte after the end: %s", code)
		}
	}
}

func TestReplayedRequestIsRefused(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	b, _, _ := w.request(t, g, 0, []byte("once"))
	if _, err := readAll(o, b, w.wantRequest()); err != nil {
		t.Fatal(err)
	}
	_, err := readAll(o, b, w.wantRequest())
	wantCode(t, err, sealed.CodeReplay)
	// A request whose body failed is used up too: a retry is a new message.
	cut, _, _ := w.request(t, g, 0, []byte("cut"))
	_, err = readAll(o, cut[:len(cut)-1], w.wantRequest())
	wantCode(t, err, sealed.CodeTruncated)
	_, err = readAll(o, cut, w.wantRequest())
	wantCode(t, err, sealed.CodeReplay)
}

func TestClockSetBackOpensNothingAgain(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	b, _, _ := w.request(t, g, 0, nil)
	if _, err := readAll(o, b, w.wantRequest()); err != nil {
		t.Fatal(err)
	}
	w.move(10 * time.Minute)
	next, _, _ := w.request(t, g, 0, nil)
	if _, err := readAll(o, next, w.wantRequest()); err != nil {
		t.Fatal(err)
	}
	w.move(-10 * time.Minute)
	_, err := readAll(o, b, w.wantRequest())
	wantCode(t, err, sealed.CodeWindow)
}

func TestForeignCallerFunctionAndRevisionAreRefused(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	g := w.requestGrant(t)
	cold, warm := coldAndWarm(t, w, g)
	for _, o := range []*unseal.Opener{cold, warm} {
		for _, c := range []struct {
			code   sealed.Code
			change func(*unseal.Expect)
		}{
			{sealed.CodeFormat, func(e *unseal.Expect) { e.Role = sealed.RoleRelease }},
			{sealed.CodeWrongFunction, func(e *unseal.Expect) { e.Name = "echo.demo2"; e.Context = sealed.Digest{9} }},
			{sealed.CodeStaleRevision, func(e *unseal.Expect) { e.Context = sealed.Digest{9}; e.Senders = &sealed.Policy{} }},
			{sealed.CodeSender, func(e *unseal.Expect) { e.Senders = unseal.Only(other.caller.SigningKey()) }},
			{sealed.CodeSender, func(e *unseal.Expect) { e.Senders = &sealed.Policy{} }},
		} {
			b, _, _ := w.request(t, g, 0, nil)
			want := w.wantRequest()
			c.change(&want)
			_, err := readAll(o, b, want)
			wantCode(t, err, c.code)
			// A refusal before "replay" uses nothing up.
			if _, err := readAll(o, b, w.wantRequest()); err != nil {
				t.Fatal(err)
			}
		}
		_, err := readAll(other.opener(t, other.fn.Decrypter(), false), must(w.request(t, g, 0, nil)), w.wantRequest())
		wantCode(t, err, sealed.CodeUnknownKey)
	}
}

func must(b []byte, _ sealed.MessageHeader, _ sealed.Link) []byte { return b }

func TestKeysOpenOnlyInTheirTime(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: w.fn.Decrypter(), NotBefore: w.now().Add(-time.Hour), NotAfter: w.now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Clock: w.now})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := unseal.NewCache(unseal.DefaultCacheConfig())
	if err != nil {
		t.Fatal(err)
	}
	o, err := unseal.NewOpener(unseal.Config{Keys: keys, Cache: cache, Replay: replay, Clock: w.now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(o, must(w.request(t, g, 0, nil)), w.wantRequest()); err != nil || cache.Len() != 1 {
		t.Fatal(err, cache.Len())
	}
	w.move(2 * time.Minute)
	_, err = readAll(o, must(w.request(t, g, 0, nil)), w.wantRequest())
	wantCode(t, err, sealed.CodeUnknownKey)
	if cache.Len() != 0 {
		t.Fatal("the cache kept a grant to a retired key")
	}
}

func TestRecordsCannotBeMovedBetweenMessages(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	a, b := must(w.request(t, g, 0, []byte("pay Alice"))), must(w.request(t, g, 0, []byte("pay Mallet")))
	p, err := sealed.Peek(a)
	if err != nil {
		t.Fatal(err)
	}
	_, err = readAll(o, append(slices.Clone(a[:p.Len]), b[p.Len:]...), w.wantRequest())
	wantCode(t, err, sealed.CodeRecord)
}

func TestRefusalHandsNothingOn(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	body := bytes.Repeat([]byte("secret "), 100_000)
	for _, size := range []int{len(body), 3 << 20} {
		b := must(w.request(t, g, 0, bytes.Repeat([]byte("secret "), size/7)))
		b[len(b)-1] ^= 1 // the last record's tag
		m, err := o.Open(bytes.NewReader(b), w.wantRequest())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.RequestHead(); !errors.Is(err, unseal.ErrUnfinished) {
			t.Fatalf("the head came out before the end: %v", err)
		}
		if _, err := m.Stream(); !errors.Is(err, unseal.ErrUnfinished) {
			t.Fatalf("streamed a request that may not be: %v", err)
		}
		r, err := m.Hold(memSpools)
		wantCode(t, err, sealed.CodeRecord)
		if r != nil || m.Complete() {
			t.Fatal("a reader, or completion, after a refusal")
		}
		if _, err := m.RequestHead(); !errors.Is(err, unseal.ErrUnfinished) {
			t.Fatalf("the head came out after a refusal: %v", err)
		}
		m.Close()
	}
	// With early input the records before the bad one come, then the error.
	b := must(w.request(t, g, sealed.FlagEarlyInput, body))
	b[len(b)-1] ^= 1
	got, err := readAll(o, b, w.wantRequest())
	wantCode(t, err, sealed.CodeRecord)
	if !bytes.HasPrefix(body, got) || len(got) < 600_000 || len(got) == len(body) {
		t.Fatalf("%d bytes of %d came out", len(got), len(body))
	}
}

func TestErrorOfTheTransportIsNoRefusal(t *testing.T) {
	w := newWorld(t)
	b := must(w.request(t, w.requestGrant(t), 0, []byte("body")))
	broken := errors.New("connection reset")
	for n := range len(b) {
		_, err := w.opener(t, w.fn.Decrypter(), false).Open(io.MultiReader(bytes.NewReader(b[:n]), failing{broken}), w.wantRequest())
		if !errors.Is(err, broken) || sealed.CodeOf(err) != "" {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
