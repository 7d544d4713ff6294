package sealed_test

import (
	"crypto"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// countingSigner counts what a hardware key would be asked for.
type countingSigner struct {
	crypto.Signer
	signed atomic.Int64
	fail   atomic.Bool
}

func (c *countingSigner) Sign(r io.Reader, e []byte, o crypto.SignerOpts) ([]byte, error) {
	if c.fail.Load() {
		return nil, errors.New("card removed")
	}
	c.signed.Add(1)
	return c.Signer.Sign(r, e, o)
}

type manualClock struct{ ms atomic.Int64 }

func (c *manualClock) now() time.Time { return time.UnixMilli(c.ms.Load()) }

func newGrantCache(t *testing.T, size int) (*sealed.GrantCache, *manualClock, *countingSigner) {
	t.Helper()
	clock := &manualClock{}
	clock.ms.Store(vectorNow)
	cfg := sealed.DefaultGrantCacheConfig()
	cfg.Size, cfg.Clock = size, clock.now
	c, err := sealed.NewGrantCache(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, clock, &countingSigner{Signer: newKey(t, "caller sign")}
}

func TestGrantIsMadeOnceAndRenewedInTime(t *testing.T) {
	c, clock, signer := newGrantCache(t, 4)
	p := grantParams(t)
	p.Sender = signer
	get := func() sealed.Digest {
		t.Helper()
		g, err := c.Get(p)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Release()
		if _, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: clock.now()}, head, nil); err != nil {
			t.Fatal(err)
		}
		return g.Digest()
	}
	first := get()
	clock.ms.Add(-59_000) // a message's time may be older than its grant
	if get() != first {
		t.Fatal("a grant's window does not begin a little early")
	}
	clock.ms.Add(59_000 + 53*60_000)
	if get() != first || signer.signed.Load() != 1 {
		t.Fatal("made again within its time")
	}
	clock.ms.Add(60_000)
	second := get()
	if second == first {
		t.Fatal("not renewed before its window ends")
	}
	clock.ms.Add(-30 * 60_000)
	if get() == second {
		t.Fatal("a grant from the future was kept when the clock was set back")
	}
	c.Drop()
	if c.Len() != 0 {
		t.Fatal("something was left")
	}
}

func TestGrantCacheKeepsPurposesApart(t *testing.T) {
	c, _, _ := newGrantCache(t, 16)
	base := grantParams(t)
	seen := map[sealed.Digest]bool{}
	for _, change := range []func(*sealed.GrantParams){
		func(*sealed.GrantParams) {},
		func(p *sealed.GrantParams) { p.Name = "other.demo" },
		func(p *sealed.GrantParams) { p.Context = sealed.Digest{2} },
		func(p *sealed.GrantParams) { p.ReplyKey = sealed.PublicKey{} },
		func(p *sealed.GrantParams) { p.Recipient = newKey(t, "function decrypt 2").PublicKey() },
		func(p *sealed.GrantParams) { p.Sender = newKey(t, "caller 2") },
		func(p *sealed.GrantParams) { p.Role, p.ReplyKey = sealed.RoleLog, sealed.PublicKey{} },
	} {
		p := base
		change(&p)
		for range 2 {
			g, err := c.Get(p)
			if err != nil {
				t.Fatal(err)
			}
			seen[g.Digest()] = true
			g.Release()
		}
	}
	if len(seen) != 7 || c.Len() != 7 {
		t.Fatalf("%d grants for 7 purposes, %d kept", len(seen), c.Len())
	}
}

func TestFailedGrantIsNotKept(t *testing.T) {
	c, _, signer := newGrantCache(t, 4)
	p := grantParams(t)
	p.Sender = signer
	signer.fail.Store(true)
	if _, err := c.Get(p); err == nil {
		t.Fatal("a grant without a signature")
	}
	signer.fail.Store(false)
	g, err := c.Get(p)
	if err != nil {
		t.Fatal(err)
	}
	g.Release()
	p.Sender = nil
	if _, err := c.Get(p); err == nil {
		t.Fatal("a grant without a signer")
	}
}

// TestGrantCacheUnderLoad: a grant in use is not wiped by its eviction.
func TestGrantCacheUnderLoad(t *testing.T) {
	c, clock, _ := newGrantCache(t, 2)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := grantParams(t)
			for j := range 30 {
				p.Context = sealed.Digest{byte(1 + (i+j)%5)}
				g, err := c.Get(p)
				if err != nil {
					t.Error(err)
					return
				}
				if _, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: clock.now()}, head, []byte("x")); err != nil {
					t.Error(err)
				}
				g.Release()
				if j%15 == 14 {
					c.Drop()
				}
			}
		})
	}
	wg.Wait()
	if c.Len() > 2 {
		t.Fatalf("%d grants kept", c.Len())
	}
}

func TestGrantCacheConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*sealed.GrantCacheConfig){
		"size":   func(c *sealed.GrantCacheConfig) { c.Size = 0 },
		"window": func(c *sealed.GrantCacheConfig) { c.Window = 2 * time.Hour },
		"second": func(c *sealed.GrantCacheConfig) { c.Window = 1500 * time.Millisecond },
		"renew":  func(c *sealed.GrantCacheConfig) { c.Renew = c.Window - time.Minute },
	} {
		cfg := sealed.DefaultGrantCacheConfig()
		change(&cfg)
		if _, err := sealed.NewGrantCache(cfg); err == nil {
			t.Errorf("wrong %s was taken", name)
		}
	}
}
