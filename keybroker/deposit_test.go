package keybroker_test

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestDepositRefusals(t *testing.T) {
	r := newRig(t)
	stranger := identity(t)
	give := func(b []byte) error { _, err := r.b.Deposit(bytes.NewReader(b)); return err }
	r.mustDeposit(r.descriptor(5))
	cases := map[string]struct {
		sealed []byte
		want   api.Code
	}{
		"another owner":             {r.deposit(stranger, r.descriptor(6)), api.CodeForbidden},
		"rollback":                  {r.deposit(r.owner, r.descriptor(4)), api.CodeConflict},
		"same sequence, other keys": {r.deposit(r.owner, r.descriptor(5, func(d *sealed.Descriptor) { d.MaxQueuedMS = 1 })), api.CodeConflict},
		"descriptor of another's": {r.deposit(r.owner, r.descriptor(6), func(d *unseal.Deposit, _ *sealed.GrantParams) {
			d.Descriptor, _ = r.descriptor(6).Sign(rand.Reader, stranger.Signer())
		}), api.CodeForbidden},
		"sealed by another": {r.deposit(r.owner, r.descriptor(6), func(_ *unseal.Deposit, g *sealed.GrantParams) { g.Sender = stranger.Signer() }), api.CodeForbidden},
		"another name":      {r.deposit(r.owner, r.descriptor(6), func(_ *unseal.Deposit, g *sealed.GrantParams) { g.Name = "a.b" }), api.CodeInvalid},
		"another broker":    {r.deposit(r.owner, r.descriptor(6, func(d *sealed.Descriptor) { d.Config.Policy.Broker = stranger.SigningKey() })), api.CodeForbidden},
		"wrong signing key": {r.deposit(r.owner, r.descriptor(6), func(d *unseal.Deposit, _ *sealed.GrantParams) { d.Signing = scalar(t, stranger.Signer()) }), api.CodeInvalid},
		"keys in another order": {r.deposit(r.owner, r.descriptor(6), func(d *unseal.Deposit, _ *sealed.GrantParams) {
			d.Decryption[0], d.Decryption[1] = d.Decryption[1], d.Decryption[0]
		}), api.CodeInvalid},
		"a key too few": {r.deposit(r.owner, r.descriptor(6), func(d *unseal.Deposit, _ *sealed.GrantParams) { d.Decryption = d.Decryption[:1] }), api.CodeInvalid},
		"another role": {r.deposit(r.owner, r.descriptor(6), func(_ *unseal.Deposit, g *sealed.GrantParams) {
			g.Role, g.Context = sealed.RoleBundle, sealed.Digest{1}
		}), "format"},
		"sealed to another": {r.deposit(r.owner, r.descriptor(6), func(_ *unseal.Deposit, g *sealed.GrantParams) { g.Recipient = stranger.DecryptionKey() }), "unknown_key"},
		"not sealed":        {[]byte("hello"), "truncated"},
	}
	for name, k := range cases {
		t.Run(name, func(t *testing.T) {
			err := give(k.sealed)
			if name == "not sealed" && (api.CodeOf(err) == "format" || api.CodeOf(err) == "truncated") {
				return
			}
			wantCode(t, err, k.want)
		})
	}
	t.Run("replay", func(t *testing.T) {
		msg := r.deposit(r.owner, r.descriptor(7))
		wantCode(t, give(msg), "")
		wantCode(t, give(msg), "replay")
	})
	t.Run("late", func(t *testing.T) {
		msg := r.deposit(r.owner, r.descriptor(8))
		r.now = r.now.Add(9 * time.Minute)
		wantCode(t, give(msg), "window")
	})
	t.Run("again in a new message", func(t *testing.T) {
		wantCode(t, give(r.deposit(r.owner, r.descriptor(9))), "")
		signed := r.deposit(r.owner, r.descriptor(9))
		if err := give(signed); err != nil && api.CodeOf(err) != api.CodeConflict {
			t.Errorf("error %v", err) // signatures differ, so the descriptors' bytes do
		}
	})
}

func TestARepeatedDepositOfTheSameDescriptorSucceeds(t *testing.T) {
	r := newRig(t)
	signed, err := r.descriptor(1).Sign(rand.Reader, r.owner.Signer())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		msg := r.deposit(r.owner, r.descriptor(1), func(d *unseal.Deposit, _ *sealed.GrantParams) { d.Descriptor = signed })
		if _, err := r.b.Deposit(bytes.NewReader(msg)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnlyAllowedOwnersDeposit(t *testing.T) {
	r := newRig(t, func(r *rig) { r.allow = []sealed.Fingerprint{r.owner.SigningKey().Fingerprint()} })
	r.mustDeposit(r.descriptor(1))
	_, err := r.b.Deposit(bytes.NewReader(r.deposit(identity(t), r.descriptor(1))))
	wantCode(t, err, "sender")
}

func removal(t *testing.T, r *rig, who *unseal.Identity, target string) reqauth.Request {
	t.Helper()
	s := &reqauth.Signer{Key: who.Signer(), Random: rand.Reader, Now: func() time.Time { return r.now }}
	h, err := s.Sign("DELETE", target, sm3.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	return reqauth.Request{Method: "DELETE", Target: target, Authorization: h}
}

func TestRemovalNeedsTheOwnerAndKeepsTheSequence(t *testing.T) {
	r := newRig(t)
	d := r.descriptor(3)
	old := r.deposit(r.owner, r.descriptor(2))
	r.mustDeposit(d)
	const target = "/v1/deposits/" + fnName
	wantCode(t, r.b.Remove(fnName, removal(t, r, identity(t), target)), api.CodeForbidden)
	wantCode(t, r.b.Remove(fnName, reqauth.Request{Method: "DELETE", Target: target}), api.CodeUnauthorized)
	req := removal(t, r, r.owner, target)
	wantCode(t, r.b.Remove(fnName, req), "")
	wantCode(t, r.b.Remove(fnName, req), api.CodeReplay)
	_, err := r.ask("n1", r.sandbox(revision(t, d)), "n1")
	wantCode(t, err, api.CodeNotFound)
	if n, err := r.b.Functions(); n != 0 || err != nil {
		t.Errorf("%d functions, %v", n, err)
	}
	r.start() // a restart forgets which messages were seen, not what was deposited
	_, err = r.b.Deposit(bytes.NewReader(old))
	wantCode(t, err, api.CodeConflict)
	other := identity(t)
	if _, err := r.b.Deposit(bytes.NewReader(r.deposit(other, r.descriptor(1)))); err != nil {
		t.Errorf("a free name: %v", err)
	}
}
