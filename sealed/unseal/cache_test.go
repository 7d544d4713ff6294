package unseal_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func (w *world) openerWith(t *testing.T, cfg unseal.CacheConfig) (*unseal.Opener, *unseal.Cache) {
	t.Helper()
	cache, err := unseal.NewCache(cfg)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := unseal.KeysOf(w.fn.Decrypter())
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
	return o, cache
}

func TestGrantIsCachedOnlyAfterItsCommitmentMatched(t *testing.T) {
	w := newWorld(t)
	o, cache := w.openerWith(t, unseal.DefaultCacheConfig())
	b := must(w.request(t, w.requestGrant(t), 0, nil))
	p, err := sealed.Peek(b)
	if err != nil {
		t.Fatal(err)
	}
	b[p.Len-1] ^= 1
	_, err = readAll(o, b, w.wantRequest())
	wantCode(t, err, sealed.CodeCommitment)
	if cache.Len() != 0 {
		t.Fatal("a grant without a matching commitment is kept")
	}
	b[p.Len-1] ^= 1
	if _, err := readAll(o, b, w.wantRequest()); err != nil || cache.Len() != 1 {
		t.Fatal(err, cache.Len())
	}
	cache.Clear()
	if cache.Len() != 0 {
		t.Fatal("something was left")
	}
}

// The claimed digest finds an entry; what is under it must still be the bytes
// received, or a message under one grant would be opened as if under another.
func TestClaimedDigestAloneFindsNoGrant(t *testing.T) {
	w := newWorld(t)
	o, cache := w.openerWith(t, unseal.DefaultCacheConfig())
	cached := must(w.request(t, w.requestGrant(t), 0, nil))
	if _, err := readAll(o, cached, w.wantRequest()); err != nil {
		t.Fatal(err)
	}
	p, err := sealed.Peek(cached)
	if err != nil {
		t.Fatal(err)
	}
	other := must(w.request(t, w.requestGrant(t), 0, nil))
	q, err := sealed.Peek(other)
	if err != nil {
		t.Fatal(err)
	}
	copy(other[q.Len-64:], p.Message.Grant[:]) // digest and commitment end the header
	_, err = readAll(o, other, w.wantRequest())
	wantCode(t, err, sealed.CodeFormat)
	if cache.Len() != 1 {
		t.Errorf("%d grants are kept", cache.Len())
	}
	again := must(w.request(t, w.requestGrant(t), 0, nil))
	if _, err := readAll(o, again, w.wantRequest()); err != nil {
		t.Fatal(err)
	}
}

func TestSenderBeyondItsShareLosesItsOwnGrants(t *testing.T) {
	w, loud := newWorld(t), newWorld(t)
	o, cache := w.openerWith(t, unseal.CacheConfig{Size: 8, PerSender: 3})
	anybody := w.wantRequest()
	anybody.Senders = &sealed.Policy{AnyCaller: true}
	quiet := w.requestGrant(t)
	if _, err := readAll(o, must(w.request(t, quiet, 0, nil)), anybody); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		g := w.grant(t, sealed.RoleRequest, func(p *sealed.GrantParams) { p.Sender = loud.caller.Signer() })
		if _, err := readAll(o, must(w.request(t, g, 0, nil)), anybody); err != nil {
			t.Fatal(err)
		}
	}
	if cache.Len() != 4 {
		t.Fatalf("%d grants kept, want the quiet sender's one and three of the loud one", cache.Len())
	}
	for range 20 {
		var err error
		if loud.caller, err = unseal.NewIdentity(rand.Reader); err != nil {
			t.Fatal(err)
		}
		g := w.grant(t, sealed.RoleRequest, func(p *sealed.GrantParams) { p.Sender = loud.caller.Signer() })
		if _, err := readAll(o, must(w.request(t, g, 0, nil)), anybody); err != nil {
			t.Fatal(err)
		}
	}
	if cache.Len() != 8 {
		t.Fatalf("%d grants kept, want 8", cache.Len())
	}
}

func TestEndedGrantsLeaveTheCache(t *testing.T) {
	w := newWorld(t)
	o, cache := w.openerWith(t, unseal.DefaultCacheConfig())
	g := w.requestGrant(t)
	want := w.wantRequest()
	want.MaxQueued = 24 * time.Hour
	queued, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: w.now(), Life: 3 * time.Hour, Flags: sealed.FlagQueued}, sealed.RequestHead{Method: "GET"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	later, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: w.now(), Life: 3 * time.Hour, Flags: sealed.FlagQueued}, sealed.RequestHead{Method: "GET"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(o, must(w.request(t, g, 0, nil)), want); err != nil || cache.Len() != 1 {
		t.Fatal(err)
	}
	w.move(2 * time.Hour)
	// A queued message outlives its grant's window: it opens, and the grant goes.
	if _, err := readAll(o, queued, want); err != nil || cache.Len() != 0 {
		t.Fatal(err, cache.Len())
	}
	if _, err := readAll(o, later, want); err != nil || cache.Len() != 0 {
		t.Fatal(err, cache.Len())
	}
	if _, err := readAll(o, must(w.request(t, w.requestGrant(t), 0, nil)), want); err != nil || cache.Len() != 1 {
		t.Fatal(err)
	}
	cache.Expire(uint64(w.now().Add(2 * time.Hour).UnixMilli()))
	if cache.Len() != 0 {
		t.Fatal("an ended grant was kept")
	}
}

// TestCacheUnderLoad opens under a few grants from many goroutines while the
// cache is small and cleared: nothing may be used after it was wiped.
func TestCacheUnderLoad(t *testing.T) {
	w := newWorld(t)
	o, cache := w.openerWith(t, unseal.CacheConfig{Size: 2, PerSender: 2})
	grants := make([]*sealed.Grant, 4)
	for i := range grants {
		grants[i] = w.requestGrant(t)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 40 {
				body := fmt.Sprint(i, j)
				b, _, _, err := grants[(i+j)%len(grants)].AppendRequest(nil, sealed.MessageParams{Issued: w.now()}, sealed.RequestHead{Method: "GET"}, []byte(body))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := readAll(o, b, w.wantRequest())
				if err != nil || string(got) != body {
					t.Errorf("%q, %v", got, err)
				}
				if j%10 == 0 {
					cache.Clear()
				}
			}
		})
	}
	wg.Wait()
	if cache.Len() > 2 {
		t.Fatalf("%d grants kept", cache.Len())
	}
}

func TestCacheConfigIsChecked(t *testing.T) {
	for _, cfg := range []unseal.CacheConfig{{}, {Size: 1}, {PerSender: 1}, {Size: -1, PerSender: 1}} {
		if _, err := unseal.NewCache(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	if _, err := unseal.NewKeySet(); err == nil {
		t.Error("a key set without keys")
	}
	w := newWorld(t)
	if _, err := unseal.NewKeySet(unseal.Key{Decrypter: w.fn.Decrypter()}, unseal.Key{Decrypter: w.fn.Decrypter()}); err == nil {
		t.Error("a key twice")
	}
	if errors.Is(unseal.SelfTest(), nil) == false {
		t.Error("self test failed")
	}
}

// A descriptor's times are whatever fits 64 bits: one that is far off is not taken for
// one that has passed.
func TestKeysOfFarOffTimesAreLiveWhenTheySay(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	b, _, _ := w.request(t, g, 0, []byte("x"))
	far := func(sec int64) time.Time { return time.Unix(sec, 0) }
	for name, c := range map[string]struct {
		from, to time.Time
		code     sealed.Code
	}{
		"for ever":             {far(0), far(1 << 62), ""},
		"to the last second":   {w.now(), far(math.MaxInt64), ""},
		"not yet for long":     {far(1 << 62), far(1 << 62), sealed.CodeUnknownKey},
		"not yet for longer":   {far(1<<61 + 1), far(math.MaxInt64), sealed.CodeUnknownKey},
		"no end, not yet":      {far(1 << 62), time.Time{}, sealed.CodeUnknownKey},
		"no beginning, no end": {time.Time{}, far(1<<62 + 1), ""},
	} {
		keys, err := unseal.NewKeySet(unseal.Key{Decrypter: w.fn.Decrypter(), NotBefore: c.from, NotAfter: c.to})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Clock: w.now})
		if err != nil {
			t.Fatal(err)
		}
		o, err := unseal.NewOpener(unseal.Config{Keys: keys, Replay: replay, Clock: w.now})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readAll(o, b, w.wantRequest()); sealed.CodeOf(err) != c.code || err != nil && c.code == "" {
			t.Errorf("%s: %v, want code %q", name, err, c.code)
		}
	}
}
