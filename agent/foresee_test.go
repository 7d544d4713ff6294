package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// grantOf is the grant that the world's caller sends its requests under.
func (w *world) grantOf() []byte {
	w.t.Helper()
	b, _ := w.sealedRequest(call{})
	p := must[sealed.Peeked](w.t)(sealed.Peek(b))
	return bytes.Clone(b[:p.GrantLen()])
}

// unlocked is a function that has its keys, and nothing that runs.
func (w *world) unlocked() *function {
	w.t.Helper()
	ephemeral := must[*unseal.PrivateKey](w.t)(unseal.NewKey(rand.Reader))
	st := must[[]byte](w.t)(statement(ephemeral.PublicKey(), rand.Reader, time.Now()))
	release := must[[]byte](w.t)(w.sealRelease(st))
	n := must[*binding](w.t)(newBinding(&api.Bind{Descriptor: w.signed, Image: w.image}))
	if err := n.takeKeys(&w.cfg, ephemeral, release); err != nil {
		w.t.Fatal(err)
	}
	f := newFunction(&w.cfg, n, nil, nil, nil)
	f.looked = make(chan struct{})
	if err := f.unlock(must[*sealed.GrantCache](w.t)(n.grantCache(&w.cfg))); err != nil {
		w.t.Fatal(err)
	}
	return f
}

func TestForeseenGrantAndItsReplyAreReady(t *testing.T) {
	w := newWorld(t, nil)
	f := w.unlocked()
	f.foresee(w.grantOf())
	<-f.looked
	if !f.primed.Load() || f.grants.Len() != 1 {
		t.Errorf("primed %t, %d grants for replies", f.primed.Load(), f.grants.Len())
	}
	b, _ := w.sealedRequest(call{})
	m := must[*unseal.Message](t)(f.opener.Open(bytes.NewReader(b), f.expect()))
	defer m.Close()
	if m.Grant.ReplyKey != w.caller.DecryptionKey() {
		t.Error("opened under another grant")
	}
}

// An owner may say that a key lives for ever by the greatest number there is.
func TestKeyThatLivesForEverIsTaken(t *testing.T) {
	w := newWorld(t, func(w *world) { w.desc.Decryption[0].NotAfter = math.MaxUint64 })
	f := w.unlocked()
	b, _ := w.sealedRequest(call{})
	m := must[*unseal.Message](t)(f.opener.Open(bytes.NewReader(b), f.expect()))
	m.Close()
}

// A function that is not called any more keeps no seed of a grant that has ended.
func TestSeedsOfEndedGrantsAreWipedThoughNobodyCalls(t *testing.T) {
	w := newWorld(t, nil)
	var ahead atomic.Int64
	w.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	w.cfg.Forget = time.Millisecond
	f := w.unlocked()
	b, _ := w.sealedRequest(call{})
	m := must[*unseal.Message](t)(f.opener.Open(bytes.NewReader(b), f.expect()))
	defer m.Close()
	a := &Agent{cfg: w.cfg, launcher: &launcher.Launcher{}, stops: make(chan api.Stop)}
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.wait(ctx, f)
		done <- err
	}()
	if f.opened.Len() != 1 {
		t.Errorf("%d grants are kept within their window", f.opened.Len())
	}
	ahead.Store(int64(sealed.MaxGrantWindow + time.Minute))
	eventually(t, "the grant is forgotten", func() bool { return f.opened.Len() == 0 })
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A node may send whatever it wants as the grant of who waits.
func TestForeseenGrantThatIsNoneMakesNothing(t *testing.T) {
	w := newWorld(t, nil)
	stranger := must[*unseal.Identity](t)(unseal.NewIdentity(rand.Reader))
	foreign := newWorld(t, func(v *world) { v.caller = stranger })
	for name, grant := range map[string][]byte{"nothing": nil, "junk": []byte("FSG1 and no more"), "another function's": foreign.grantOf()} {
		f := w.unlocked()
		f.foresee(grant)
		<-f.looked
		if f.primed.Load() || f.grants.Len() != 0 {
			t.Errorf("%s: primed %t, %d grants for replies", name, f.primed.Load(), f.grants.Len())
		}
	}
}

func TestWhoWaitsIsAnsweredWhateverItsNodeSaidOfIt(t *testing.T) {
	for name, grant := range map[string]func(*world) []byte{
		"its grant":   (*world).grantOf,
		"another one": func(w *world) []byte { return newWorld(w.t, nil).grantOf() },
		"junk":        func(*world) []byte { return []byte("junk") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.waiting = grant(w)
			w.start()
			for _, text := range []string{"first", "second"} {
				if _, body := w.get("/echo", text); body != text {
					t.Errorf("%q", body)
				}
			}
		})
	}
}
