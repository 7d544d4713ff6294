package client

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Whom needs are told is decided as whom function keys go to: by the pin, or by
// the first answer where that is wanted; and only to keys that the pinned opener
// signed, whichever it draws later.
func TestManifestKeysArePinnedByTheirSigner(t *testing.T) {
	identity := func() *unseal.Identity {
		id, err := unseal.NewIdentity(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	opener, other := identity(), identity()
	offer := func(signer *unseal.Identity, from, to time.Time) api.ManifestKeys {
		k := manifest.Key{Public: identity().DecryptionKey(), NotBefore: uint64(from.Unix()), NotAfter: uint64(to.Unix())}
		if err := k.Sign(rand.Reader, signer.Signer()); err != nil {
			t.Fatal(err)
		}
		return api.ManifestKeys{Identity: signer.SigningKey().String(),
			Keys: []api.ManifestKey{{Public: k.Public.String(), NotBefore: k.NotBefore, NotAfter: k.NotAfter, Signature: k.Signature}}}
	}
	now := time.Now()
	good, next := offer(opener, now, now.Add(time.Hour)), offer(opener, now, now.Add(2*time.Hour))
	foreign, over := offer(other, now, now.Add(time.Hour)), offer(opener, now.Add(-2*time.Hour), now.Add(-time.Hour))
	forged := offer(other, now, now.Add(time.Hour))
	forged.Identity = good.Identity
	var served atomic.Pointer[api.ManifestKeys]
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(served.Load()); err != nil {
			t.Error(err)
		}
	}))
	defer gateway.Close()
	pins := new(Pins)
	ask := func(first bool, keys api.ManifestKeys) (sealed.PublicKey, error) {
		served.Store(&keys)
		c, err := New(Config{Gateway: gateway.URL, Identity: identity(), Pins: pins, TrustOnFirstUse: first})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.manifestKey(t.Context())
	}
	if _, err := ask(false, good); api.CodeOf(err) != api.CodeForbidden {
		t.Errorf("nobody is pinned: %v", err)
	}
	if _, err := ask(true, forged); api.CodeOf(err) != api.CodeForbidden {
		t.Errorf("a forged key at first use: %v", err)
	}
	if _, ok := pins.Opener(gateway.URL); ok {
		t.Fatal("pinned for a signature that does not hold")
	}
	if k, err := ask(true, good); err != nil || k.String() != good.Keys[0].Public {
		t.Errorf("first use: %v", err)
	}
	if k, err := ask(false, next); err != nil || k.String() != next.Keys[0].Public {
		t.Errorf("the next key of the pinned opener: %v", err)
	}
	for what, keys := range map[string]api.ManifestKeys{"another opener": foreign, "a key it did not sign": forged} {
		if _, err := ask(true, keys); api.CodeOf(err) != api.CodeForbidden {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ask(false, over); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("a key whose time is over: %v", err)
	}
}
