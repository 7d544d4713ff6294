package keybroker_test

import (
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestReleasedKeysAreTheDepositedOnes(t *testing.T) {
	r := newRig(t)
	d := r.descriptor(1)
	r.mustDeposit(d)
	for _, restart := range []bool{false, true} {
		if restart {
			r.start()
		}
		s := r.sandbox(revision(t, d))
		reply, err := r.ask("n1", s, "n1")
		if err != nil {
			t.Fatal(err)
		}
		rel, err := s.open(r, reply.Sealed)
		if err != nil {
			t.Fatal(err)
		}
		if err := unseal.MatchDescriptor(d, rel.Signing, rel.Decryption); err != nil || reply.Type != "word" {
			t.Errorf("restart %v: %v, type %q", restart, err, reply.Type)
		}
		if _, err := r.sandbox(revision(t, d)).open(r, reply.Sealed); err == nil {
			t.Error("another sandbox opened the release")
		}
	}
}

func TestReleaseRefusals(t *testing.T) {
	r := newRig(t)
	d := r.descriptor(1)
	r.mustDeposit(d)
	rev := revision(t, d)
	t.Run("evidence not believed", func(t *testing.T) {
		_, err := r.ask("liar", r.sandbox(rev), "liar")
		wantCode(t, err, api.CodeKeyRefused)
	})
	t.Run("evidence of another node", func(t *testing.T) {
		_, err := r.ask("n1", r.sandbox(rev), "n2")
		wantCode(t, err, api.CodeKeyRefused)
	})
	t.Run("no evidence", func(t *testing.T) {
		s := r.sandbox(rev)
		b, _ := cbor.Marshal(s.st)
		_, err := r.b.Release(t.Context(), "n1", api.ReleaseRequest{Function: s.fn, Revision: s.rev.String(), Statement: b})
		wantCode(t, err, api.CodeKeyRefused)
	})
	t.Run("old statement", func(t *testing.T) {
		s := r.sandbox(rev)
		s.st.IssuedAtMs -= 301_000
		_, err := r.ask("n1", s, "n1")
		wantCode(t, err, api.CodeKeyRefused)
	})
	t.Run("another revision", func(t *testing.T) {
		_, err := r.ask("n1", r.sandbox(sealed.Digest{1}), "n1")
		wantCode(t, err, api.CodeStaleRevision)
	})
	t.Run("unknown function", func(t *testing.T) {
		s := r.sandbox(rev)
		s.fn = "other.openfaas-fn"
		_, err := r.ask("n1", s, "n1")
		wantCode(t, err, api.CodeNotFound)
	})
	t.Run("name that is not full", func(t *testing.T) {
		s := r.sandbox(rev)
		s.fn = "hello"
		_, err := r.ask("n1", s, "n1")
		wantCode(t, err, api.CodeInvalid)
	})
	t.Run("type the owner does not accept", func(t *testing.T) {
		r.mustDeposit(r.descriptor(2, func(d *sealed.Descriptor) { d.Config.Policy.Attestation = []string{"tdx"} }))
		_, err := r.ask("n1", r.sandbox(revision(t, r.descriptor(2, func(d *sealed.Descriptor) { d.Config.Policy.Attestation = []string{"tdx"} }))), "n1")
		wantCode(t, err, api.CodeKeyRefused)
	})
	t.Run("owner accepts nothing", func(t *testing.T) {
		none := r.descriptor(3, func(d *sealed.Descriptor) { d.Config.Policy.Attestation = nil })
		r.mustDeposit(none)
		_, err := r.ask("n1", r.sandbox(revision(t, none)), "n1")
		wantCode(t, err, api.CodeKeyRefused)
	})
}

func TestASandboxGetsTheKeysOfOneFunctionOnly(t *testing.T) {
	r := newRig(t)
	d := r.descriptor(1)
	r.mustDeposit(d)
	other := r.descriptor(1, func(d *sealed.Descriptor) { d.Name = "second" })
	r.mustDeposit(other)
	s := r.sandbox(revision(t, d))
	for range 2 { // asking again is what a node does whose connection broke
		if _, err := r.ask("n1", s, "n1"); err != nil {
			t.Fatal(err)
		}
	}
	same := *s
	same.fn, same.rev = other.FullName(), revision(t, other)
	_, err := r.ask("n1", &same, "n1")
	wantCode(t, err, api.CodeKeyRefused)
	// A newer statement of the same sandbox changes nothing.
	r.now = r.now.Add(4 * time.Minute)
	same.st.IssuedAtMs, same.st.Nonce = r.now.UnixMilli(), append(make([]byte, 15), 1)
	_, err = r.ask("n1", &same, "n1")
	wantCode(t, err, api.CodeKeyRefused)
}

func TestOnlyAllowedAgentsGetKeys(t *testing.T) {
	allow := func(of string) func(*rig) {
		return func(r *rig) { r.agent = []sealed.Digest{sm3.Sum([]byte(of))} }
	}
	for of, want := range map[string]api.Code{"agent": "", "another": api.CodeKeyRefused} {
		r := newRig(t, allow(of))
		d := r.descriptor(1)
		r.mustDeposit(d)
		_, err := r.ask("n1", r.sandbox(revision(t, d)), "n1")
		wantCode(t, err, want)
		if err != nil && !strings.Contains(err.Error(), "-allow-agent") { // the flag of cmd/keybroker
			t.Errorf("%v names no flag that there is", err)
		}
	}
}

func TestANodeThatAsksTooOftenWaits(t *testing.T) {
	r := newRig(t, func(r *rig) { r.rate = keybroker.Rate{PerSecond: 1, Burst: 2} })
	d := r.descriptor(1)
	r.mustDeposit(d)
	ask := func(node string) error { _, err := r.ask(node, r.sandbox(revision(t, d)), node); return err }
	wantCode(t, ask("n1"), "")
	wantCode(t, ask("n1"), "")
	wantCode(t, ask("n1"), api.CodeBusy)
	wantCode(t, ask("n2"), "")
	r.now = r.now.Add(1100 * time.Millisecond)
	wantCode(t, ask("n1"), "")
}
