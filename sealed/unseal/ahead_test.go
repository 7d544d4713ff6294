package unseal_test

import (
	"bytes"
	"crypto"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// counted counts what a decryption key was used for.
type counted struct {
	crypto.Decrypter
	uses atomic.Int64
}

func (c *counted) Decrypt(random io.Reader, b []byte, o crypto.DecrypterOpts) ([]byte, error) {
	c.uses.Add(1)
	return c.Decrypter.Decrypt(random, b, o)
}

// foreseen is an opener that counts and the grant part of a request's bytes.
func (w *world) foreseen(t *testing.T, body []byte) (*unseal.Opener, *unseal.Cache, *counted, []byte) {
	t.Helper()
	key := &counted{Decrypter: w.fn.Decrypter()}
	cache, err := unseal.NewCache(unseal.DefaultCacheConfig())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := unseal.KeysOf(key)
	if err != nil {
		t.Fatal(err)
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Clock: w.now})
	if err != nil {
		t.Fatal(err)
	}
	o, err := unseal.NewOpener(unseal.Config{Keys: keys, Cache: cache, Replay: replay, Clock: w.now})
	if err != nil {
		t.Fatal(err)
	}
	p, err := sealed.Peek(body)
	if err != nil {
		t.Fatal(err)
	}
	return o, cache, key, body[:p.GrantLen()]
}

func TestFirstMessageUnderAPreparedGrantCostsNoPublicKeyOperation(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	b := must(w.request(t, g, 0, []byte("hello")))
	o, cache, key, grant := w.foreseen(t, b)
	a, err := o.Prepare(bytes.Clone(grant), w.wantRequest())
	if err != nil {
		t.Fatal(err)
	}
	if h := a.Header(); h.ReplyKey != w.caller.DecryptionKey() || h.Name != w.name {
		t.Errorf("%+v", h)
	}
	if cache.Len() != 0 {
		t.Fatal("a grant is cached before its first message")
	}
	before := key.uses.Load()
	if got, err := readAll(o, b, w.wantRequest()); err != nil || string(got) != "hello" {
		t.Fatalf("%q %v", got, err)
	}
	if n := key.uses.Load() - before; n != 0 {
		t.Errorf("the message cost %d decryptions", n)
	}
	if cache.Len() != 1 {
		t.Error("the grant is not cached after its first message")
	}
	a.Discard() // what was taken is not its business any more
	if _, err := readAll(o, must(w.request(t, g, 0, nil)), w.wantRequest()); err != nil || key.uses.Load() != before {
		t.Errorf("the second message: %v, %d decryptions", err, key.uses.Load()-before)
	}
	_, err = readAll(o, b, w.wantRequest())
	wantCode(t, err, sealed.CodeReplay)
}

// What a message is refused for without preparation it is refused for with it.
func TestPreparedGrantChangesNoRefusal(t *testing.T) {
	for name, c := range map[string]struct {
		code   sealed.Code
		spoil  func(w *world, b []byte, want *unseal.Expect) []byte
		wiped  bool // by the refused message
		reject bool // the message does not find the candidate
	}{
		"commitment": {code: sealed.CodeCommitment, wiped: true, spoil: func(_ *world, b []byte, _ *unseal.Expect) []byte {
			p, _ := sealed.Peek(b)
			b[p.Len-1] ^= 1
			return b
		}},
		"record": {code: sealed.CodeRecord, spoil: func(_ *world, b []byte, _ *unseal.Expect) []byte {
			b[len(b)-1] ^= 1
			return b
		}},
		"another digest": {code: sealed.CodeFormat, reject: true, spoil: func(_ *world, b []byte, _ *unseal.Expect) []byte {
			p, _ := sealed.Peek(b)
			b[p.Len-33] ^= 1
			return b
		}},
		"changed grant": {code: sealed.CodeSignature, reject: true, spoil: func(_ *world, b []byte, _ *unseal.Expect) []byte {
			p, _ := sealed.Peek(b)
			b[p.GrantLen()-1] ^= 1 // of the signature
			return forgeDigest(b)
		}},
		"another function": {code: sealed.CodeWrongFunction, wiped: true, spoil: func(_ *world, b []byte, e *unseal.Expect) []byte {
			e.Name = "other.demo"
			return b
		}},
		"another revision": {code: sealed.CodeStaleRevision, wiped: true, spoil: func(_ *world, b []byte, e *unseal.Expect) []byte {
			e.Context[0] ^= 1
			return b
		}},
		"revoked sender": {code: sealed.CodeSender, wiped: true, spoil: func(w *world, b []byte, e *unseal.Expect) []byte {
			e.Senders = unseal.Only(w.owner.SigningKey())
			return b
		}},
		"expired between": {code: sealed.CodeWindow, wiped: true, spoil: func(w *world, b []byte, _ *unseal.Expect) []byte {
			w.move(50 * time.Second) // the message's life, not the candidate's
			return b
		}},
		"expired with it": {code: sealed.CodeWindow, wiped: true, spoil: func(w *world, b []byte, _ *unseal.Expect) []byte {
			w.move(2 * time.Hour)
			return b
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			b, _, _, err := w.requestGrant(t).AppendRequest(nil, sealed.MessageParams{Issued: w.now(), Life: 10 * time.Second},
				sealed.RequestHead{Method: "POST"}, []byte("body"))
			if err != nil {
				t.Fatal(err)
			}
			o, cache, _, grant := w.foreseen(t, b)
			a, err := o.Prepare(grant, w.wantRequest())
			if err != nil {
				t.Fatal(err)
			}
			want := w.wantRequest()
			_, err = readAll(o, c.spoil(w, bytes.Clone(b), &want), want)
			wantCode(t, err, c.code)
			if a.Wiped() != c.wiped {
				t.Errorf("wiped %t", a.Wiped())
			}
			if kept := cache.Len(); kept != 0 && c.code != sealed.CodeRecord {
				t.Errorf("%d grants are cached", kept)
			}
			a.Discard()
			if c.reject && !a.Wiped() {
				t.Error("discarded, and not wiped")
			}
		})
	}
}

// forgeDigest makes the message name the grant that it stands under.
func forgeDigest(b []byte) []byte {
	p, _ := sealed.Peek(b)
	digest := sm3.Sum(b[:p.GrantLen()])
	copy(b[p.Len-64:], digest[:]) // digest and commitment end the header
	return b
}

func TestGrantThatCannotOpenIsNotPrepared(t *testing.T) {
	for name, c := range map[string]struct {
		code  sealed.Code
		spoil func(w *world, g []byte, want *unseal.Expect) []byte
		grant func(*sealed.GrantParams)
	}{
		"cut":       {code: sealed.CodeFormat, spoil: func(_ *world, g []byte, _ *unseal.Expect) []byte { return g[:len(g)-1] }},
		"followed":  {code: sealed.CodeFormat, spoil: func(_ *world, g []byte, _ *unseal.Expect) []byte { return append(g, 0) }},
		"no grant":  {code: sealed.CodeFormat, spoil: func(*world, []byte, *unseal.Expect) []byte { return []byte("GET / HTTP/1.1") }},
		"empty":     {code: sealed.CodeFormat, spoil: func(*world, []byte, *unseal.Expect) []byte { return nil }},
		"signature": {code: sealed.CodeSignature, spoil: func(_ *world, g []byte, _ *unseal.Expect) []byte { g[len(g)-1] ^= 1; return g }},
		"role": {code: sealed.CodeFormat, spoil: func(w *world, g []byte, e *unseal.Expect) []byte {
			*e = w.want(sealed.RoleBundle)
			return g
		}},
		"function": {code: sealed.CodeWrongFunction, grant: func(p *sealed.GrantParams) { p.Name = "other.demo" }},
		"revision": {code: sealed.CodeStaleRevision, grant: func(p *sealed.GrantParams) { p.Context[0] ^= 1 }},
		"over": {code: sealed.CodeWindow, grant: func(p *sealed.GrantParams) {
			p.NotBefore, p.NotAfter = p.NotBefore.Add(-time.Hour), p.NotBefore.Add(-time.Second)
		}},
		"not yet": {code: sealed.CodeWindow, grant: func(p *sealed.GrantParams) {
			p.NotBefore, p.NotAfter = p.NotBefore.Add(time.Hour), p.NotAfter.Add(time.Hour)
		}},
		"sender": {code: sealed.CodeSender, spoil: func(w *world, g []byte, e *unseal.Expect) []byte {
			e.Senders = unseal.Only(w.owner.SigningKey())
			return g
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.grant(t, sealed.RoleRequest, c.grant)
			issued := time.Unix(int64(g.Header().NotBefore), 0)
			b, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: issued}, sealed.RequestHead{Method: "POST"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			o, cache, key, grant := w.foreseen(t, b)
			want := w.wantRequest()
			grant = bytes.Clone(grant)
			if c.spoil != nil {
				grant = c.spoil(w, grant, &want)
			}
			a, err := o.Prepare(grant, want)
			wantCode(t, err, c.code)
			if a != nil || cache.Len() != 0 || key.uses.Load() != 0 {
				t.Errorf("%v, %d cached, %d decryptions", a, cache.Len(), key.uses.Load())
			}
		})
	}
	t.Run("recipient", func(t *testing.T) {
		w, other := newWorld(t), newWorld(t)
		g := w.grant(t, sealed.RoleRequest, func(p *sealed.GrantParams) { p.Recipient = other.fn.DecryptionKey() })
		o, _, _, grant := w.foreseen(t, must(w.request(t, g, 0, nil)))
		_, err := o.Prepare(grant, w.wantRequest())
		wantCode(t, err, sealed.CodeUnknownKey)
	})
}

func TestPreparedGrantsAreFewAndShortLived(t *testing.T) {
	w := newWorld(t)
	first := must(w.request(t, w.requestGrant(t), 0, nil))
	o, _, key, grant := w.foreseen(t, first)
	var all []*unseal.Ahead
	prepare := func(grant []byte) {
		t.Helper()
		a, err := o.Prepare(grant, w.wantRequest())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	prepare(grant)
	for range 4 {
		b := must(w.request(t, w.requestGrant(t), 0, nil))
		p, err := sealed.Peek(b)
		if err != nil {
			t.Fatal(err)
		}
		prepare(b[:p.GrantLen()])
	}
	if !all[0].Wiped() || all[1].Wiped() {
		t.Fatalf("the oldest wiped: %t, the next: %t", all[0].Wiped(), all[1].Wiped())
	}
	all[0].Discard()
	all[1].Discard()
	all[1].Discard()
	if !all[1].Wiped() || all[2].Wiped() {
		t.Error("Discard wipes its own, and nothing else")
	}
	if _, err := readAll(o, first, w.wantRequest()); err != nil { // as without any
		t.Fatal(err)
	}

	last := w.requestGrant(t)
	b := must(w.request(t, last, 0, nil))
	p, err := sealed.Peek(b)
	if err != nil {
		t.Fatal(err)
	}
	prepare(b[:p.GrantLen()])
	w.move(2 * time.Minute)
	before := key.uses.Load()
	if _, err := readAll(o, must(w.request(t, last, 0, nil)), w.wantRequest()); err != nil {
		t.Fatal(err)
	}
	if key.uses.Load() != before+1 || !all[len(all)-1].Wiped() {
		t.Errorf("a grant prepared too long ago was used: %d decryptions, wiped %t", key.uses.Load()-before, all[len(all)-1].Wiped())
	}
}

func TestPreparedGrantServesOneOfManyAtOnce(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	bodies := make([][]byte, 8)
	for i := range bodies {
		bodies[i] = must(w.request(t, g, 0, []byte{byte(i)}))
	}
	o, cache, _, grant := w.foreseen(t, bodies[0])
	a, err := o.Prepare(grant, w.wantRequest())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, b := range bodies {
		wg.Go(func() {
			if got, err := readAll(o, b, w.wantRequest()); err != nil || !bytes.Equal(got, []byte{byte(i)}) {
				t.Errorf("%v %v", got, err)
			}
		})
	}
	wg.Go(a.Discard)
	wg.Wait()
	if cache.Len() != 1 {
		t.Errorf("%d grants are cached", cache.Len())
	}
	if _, err := o.Prepare(grant, unseal.Expect{}); err == nil || errors.Is(err, sealed.CodeFormat) {
		t.Errorf("no expectation: %v", err)
	}
}
