package keybroker_test

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// old and next are descriptors of two revisions.
func (r *rig) twoRevisions() (old, next *sealed.Descriptor) {
	return r.descriptor(1, func(d *sealed.Descriptor) { d.Config.ExecMS = 1000 }), r.descriptor(5, func(d *sealed.Descriptor) { d.Config.ExecMS = 2000 })
}

// traffic divides calls evenly between descriptors, the latest last, for an hour.
func (r *rig) traffic(seq uint64, list ...*sealed.Descriptor) *sealed.Traffic {
	r.t.Helper()
	st := &sealed.Traffic{Name: "hello", Namespace: "openfaas-fn", Sequence: seq, Issued: uint64(r.now.Unix()), Expires: uint64(r.now.Add(time.Hour).Unix())}
	rest := uint64(100)
	for i, d := range list {
		p := uint64(100 / len(list))
		if i == len(list)-1 {
			p = rest
		}
		rest -= p
		st.Shares = append(st.Shares, sealed.Share{Revision: revision(r.t, d), Sequence: d.Sequence, Percent: p})
	}
	return st
}

// split is a deposit of the last one with a statement and the keys of the others.
func (r *rig) split(owner *unseal.Identity, st *sealed.Traffic, list []*sealed.Descriptor, edit ...func(*unseal.Deposit)) []byte {
	r.t.Helper()
	latest := list[len(list)-1]
	return r.deposit(owner, latest, func(dep *unseal.Deposit, _ *sealed.GrantParams) {
		if b, ok := r.signed[latest]; ok {
			dep.Descriptor = b
		}
		var err error
		if dep.Traffic, err = st.Sign(rand.Reader, owner.Signer()); err != nil {
			r.t.Fatal(err)
		}
		for _, d := range list[:len(list)-1] {
			b, err := d.Sign(rand.Reader, owner.Signer())
			if err != nil {
				r.t.Fatal(err)
			}
			dep.Beside = append(dep.Beside, unseal.Deposit{Descriptor: b, Signing: scalar(r.t, r.fn.Signer()),
				Decryption: [][]byte{scalar(r.t, r.fn.Decrypter()), scalar(r.t, r.old.Decrypter())}})
		}
		for _, e := range edit {
			e(dep)
		}
	})
}

// keep signs d once, so that it can be deposited again.
func (r *rig) keep(d *sealed.Descriptor) *sealed.Descriptor {
	r.t.Helper()
	b, err := d.Sign(rand.Reader, r.owner.Signer())
	if err != nil {
		r.t.Fatal(err)
	}
	if r.signed == nil {
		r.signed = map[*sealed.Descriptor][]byte{}
	}
	r.signed[d] = b
	if _, err := r.b.Deposit(bytes.NewReader(r.deposit(r.owner, d, func(dep *unseal.Deposit, _ *sealed.GrantParams) { dep.Descriptor = b }))); err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r *rig) give(msg []byte) error {
	_, err := r.b.Deposit(bytes.NewReader(msg))
	return err
}

// released asks for the keys of a descriptor and checks that they are its.
func (r *rig) released(d *sealed.Descriptor) error {
	r.t.Helper()
	s := r.sandbox(revision(r.t, d))
	reply, err := r.ask("n1", s, "n1")
	if err != nil {
		return err
	}
	rel, err := s.open(r, reply.Sealed)
	if err != nil {
		return err
	}
	return unseal.MatchDescriptor(d, rel.Signing, rel.Decryption)
}

func TestKeysOfAnOlderRevisionAreReleasedWhileAStatementNamesIt(t *testing.T) {
	r := newRig(t)
	old, next := r.twoRevisions()
	r.keep(old)
	r.keep(next)
	wantCode(t, r.released(old), api.CodeStaleRevision)

	wantCode(t, r.give(r.split(r.owner, r.traffic(6, old, next), []*sealed.Descriptor{old, next})), "")
	for _, restart := range []bool{false, true} {
		if restart {
			r.start()
		}
		wantCode(t, r.released(old), "")
		wantCode(t, r.released(next), "")
	}

	// Its end, and not a moment more.
	r.now = r.now.Add(time.Hour - time.Second)
	wantCode(t, r.released(old), "")
	r.now = r.now.Add(time.Second)
	wantCode(t, r.released(old), api.CodeStaleRevision)
	wantCode(t, r.released(next), "")
	before := r.file(t)
	if err := r.b.Lapse(); err != nil {
		t.Fatal(err)
	}
	if after := r.file(t); len(after) >= len(before) {
		t.Errorf("the keys that ended still lie there: %d bytes, %d before", len(after), len(before))
	}
	// A clock that goes back finds nothing to release.
	r.now = r.now.Add(-time.Minute)
	wantCode(t, r.released(old), api.CodeStaleRevision)
	wantCode(t, r.released(next), "")
}

func (r *rig) file(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "vault", fnName+".keys"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestABrokerThatWasOffFindsWhatEndedMeanwhile(t *testing.T) {
	r := newRig(t)
	old, next := r.twoRevisions()
	wantCode(t, r.give(r.split(r.owner, r.traffic(6, old, next), []*sealed.Descriptor{old, next})), "")
	before := r.file(t)
	r.now = r.now.Add(2 * time.Hour)
	r.start()
	wantCode(t, r.released(old), api.CodeStaleRevision)
	if err := r.b.Lapse(); err != nil {
		t.Fatal(err)
	}
	if after := r.file(t); len(after) >= len(before) {
		t.Errorf("%d bytes, %d before", len(after), len(before))
	}
}

func TestWhatIsSaidLaterEndsAStatement(t *testing.T) {
	for name, say := range map[string]func(r *rig, next *sealed.Descriptor) *sealed.Descriptor{
		"a statement for the latest alone": func(r *rig, next *sealed.Descriptor) *sealed.Descriptor {
			wantCode(r.t.(*testing.T), r.give(r.split(r.owner, r.traffic(7, next), []*sealed.Descriptor{next})), "")
			return next
		},
		"a deposit": func(r *rig, next *sealed.Descriptor) *sealed.Descriptor {
			return r.keep(r.descriptor(8, func(d *sealed.Descriptor) { d.Config.ExecMS = 3000 }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.t = t
			old, next := r.twoRevisions()
			r.keep(next)
			first := r.split(r.owner, r.traffic(6, old, next), []*sealed.Descriptor{old, next})
			wantCode(t, r.give(first), "")
			wantCode(t, r.released(old), "")
			latest := say(r, next)
			wantCode(t, r.released(old), api.CodeStaleRevision)
			wantCode(t, r.released(latest), "")

			// The former statement, as it was sent and sealed anew, to a broker that
			// remembers messages and to one that does not any more.
			wantCode(t, r.give(first), "replay")
			r.start()
			wantCode(t, r.give(first), api.CodeConflict)
			wantCode(t, r.give(r.split(r.owner, r.traffic(6, old, next), []*sealed.Descriptor{old, next})), api.CodeConflict)
			wantCode(t, r.released(old), api.CodeStaleRevision)

			// Nor after a removal.
			const target = "/v1/deposits/" + fnName
			wantCode(t, r.b.Remove(fnName, removal(t, r, r.owner, target)), "")
			wantCode(t, r.give(r.split(r.owner, r.traffic(6, old, next), []*sealed.Descriptor{old, next})), api.CodeConflict)
			wantCode(t, r.released(old), api.CodeNotFound)
		})
	}
}

func TestARepeatedStatementSucceeds(t *testing.T) {
	r := newRig(t)
	old, next := r.twoRevisions()
	r.keep(next)
	st, err := r.traffic(6, old, next).Sign(rand.Reader, r.owner.Signer())
	if err != nil {
		t.Fatal(err)
	}
	same := func(d *unseal.Deposit) { d.Traffic = st }
	for range 2 { // the answer to the first was lost
		wantCode(t, r.give(r.split(r.owner, r.traffic(6, old, next), []*sealed.Descriptor{old, next}, same)), "")
	}
	wantCode(t, r.released(old), "")
	// A repeated deposit of the latest alone does not end it: that was said before.
	wantCode(t, r.give(r.deposit(r.owner, next, func(d *unseal.Deposit, _ *sealed.GrantParams) { d.Descriptor = r.signed[next] })), "")
	wantCode(t, r.released(old), "")
}

func TestWrongStatementsAreRefused(t *testing.T) {
	r := newRig(t)
	stranger := identity(t)
	old, next := r.twoRevisions()
	both := []*sealed.Descriptor{old, next}
	r.keep(next)
	signedBy := func(who *unseal.Identity, st *sealed.Traffic) func(*unseal.Deposit) {
		return func(d *unseal.Deposit) {
			var err error
			if d.Traffic, err = st.Sign(rand.Reader, who.Signer()); err != nil {
				t.Fatal(err)
			}
		}
	}
	edited := func(edit func(*sealed.Traffic)) func(*unseal.Deposit) {
		st := r.traffic(6, both...)
		edit(st)
		return signedBy(r.owner, st)
	}
	third := r.descriptor(3, func(d *sealed.Descriptor) { d.Config.ExecMS = 3000 })
	for name, c := range map[string]struct {
		edit func(*unseal.Deposit)
		want api.Code
	}{
		"by another key":        {signedBy(stranger, r.traffic(6, both...)), api.CodeForbidden},
		"for another function":  {edited(func(st *sealed.Traffic) { st.Name = "other" }), api.CodeInvalid},
		"for another namespace": {edited(func(st *sealed.Traffic) { st.Namespace = "other" }), api.CodeInvalid},
		"expired":               {edited(func(st *sealed.Traffic) { st.Issued -= 7200; st.Expires = st.Issued + 7200 }), "window"},
		"of the future":         {edited(func(st *sealed.Traffic) { st.Issued += 60 }), "window"},
		"cut":                   {func(d *unseal.Deposit) { d.Traffic = d.Traffic[:len(d.Traffic)-1] }, api.CodeInvalid},
		"a bit flipped in the signature": {func(d *unseal.Deposit) {
			d.Traffic[len(d.Traffic)-1] ^= 1
		}, api.CodeForbidden},
		"a revision of another owner": {func(d *unseal.Deposit) {
			b, err := old.Sign(rand.Reader, stranger.Signer())
			if err != nil {
				t.Fatal(err)
			}
			d.Beside[0].Descriptor = b
		}, api.CodeForbidden},
		"other keys than the descriptor's": {func(d *unseal.Deposit) { d.Beside[0].Signing = scalar(t, stranger.Signer()) }, api.CodeInvalid},
		"keys too few":                     {func(d *unseal.Deposit) { d.Beside = nil }, api.CodeInvalid},
		"keys of one twice":                {func(d *unseal.Deposit) { d.Beside = append(d.Beside, d.Beside[0]) }, api.CodeInvalid},
		"keys of what is not named":        {signedBy(r.owner, r.traffic(6, next)), api.CodeInvalid},
		"another descriptor of the same revision": {func(d *unseal.Deposit) {
			again := *old
			again.Sequence = 2
			b, err := again.Sign(rand.Reader, r.owner.Signer())
			if err != nil {
				t.Fatal(err)
			}
			d.Beside[0].Descriptor = b
		}, api.CodeInvalid},
		"the latest is another": {signedBy(r.owner, r.traffic(6, old, third)), api.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, r.give(r.split(r.owner, r.traffic(6, both...), both, c.edit)), c.want)
			wantCode(t, r.released(old), api.CodeStaleRevision)
			wantCode(t, r.released(next), "")
		})
	}
	t.Run("a deposit of another owner", func(t *testing.T) {
		wantCode(t, r.give(r.split(stranger, r.traffic(6, both...), both, func(d *unseal.Deposit) {
			var err error
			if d.Descriptor, err = next.Sign(rand.Reader, stranger.Signer()); err != nil {
				t.Fatal(err)
			}
		})), api.CodeForbidden)
	})
	t.Run("for another broker", func(t *testing.T) {
		elsewhere := r.descriptor(1, func(d *sealed.Descriptor) { d.Config.ExecMS, d.Config.Policy.Broker = 1000, stranger.SigningKey() })
		wantCode(t, r.give(r.split(r.owner, r.traffic(6, elsewhere, next), []*sealed.Descriptor{elsewhere, next})), api.CodeForbidden)
	})
	wantCode(t, r.give(r.split(r.owner, r.traffic(6, both...), both)), "")
	wantCode(t, r.released(old), "")
}

func TestARolloutsStatementComesWithTheNewKeys(t *testing.T) {
	r := newRig(t)
	old, next := r.twoRevisions()
	r.mustDeposit(old)
	wantCode(t, r.give(r.split(r.owner, r.traffic(6, old, next), []*sealed.Descriptor{old, next})), "")
	wantCode(t, r.released(old), "")
	wantCode(t, r.released(next), "")
	// The policy of each is its own.
	strict := r.descriptor(7, func(d *sealed.Descriptor) { d.Config.ExecMS, d.Config.Policy.Attestation = 3000, []string{"tdx"} })
	wantCode(t, r.give(r.split(r.owner, r.traffic(8, next, strict), []*sealed.Descriptor{next, strict})), "")
	wantCode(t, r.released(strict), api.CodeKeyRefused)
	wantCode(t, r.released(next), "")
	wantCode(t, r.released(old), api.CodeStaleRevision)
}
