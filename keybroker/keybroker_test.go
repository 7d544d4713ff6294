package keybroker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

const fnName = "hello.openfaas-fn"

// word is evidence that is believed when it reads "node agent-digest-hex".
type word struct{}

func (word) Type() string { return "word" }
func (word) Verify(_ context.Context, statement []byte, ev api.Evidence) (attest.Claims, error) {
	node, rest, _ := strings.Cut(string(ev.Data), " ")
	if node == "liar" {
		return attest.Claims{}, errors.New("not believed")
	}
	d, err := sealed.ParseDigest(rest)
	return attest.Claims{Type: "word", NodeID: node, AgentDigest: d}, err
}

// rig is a broker with what an owner, a node and a sandbox bring.
type rig struct {
	t     testing.TB
	dir   string
	now   time.Time
	log   bytes.Buffer
	id    *keybroker.Identity
	b     *keybroker.Broker
	owner *unseal.Identity
	fn    *unseal.Identity
	old   *unseal.Identity // a second decryption key
	allow []sealed.Fingerprint
	agent []sealed.Digest
	rate  keybroker.Rate
}

var pass = []byte("correct horse")

func newRig(t testing.TB, options ...func(*rig)) *rig {
	r := &rig{t: t, dir: t.TempDir(), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		owner: identity(t), fn: identity(t), old: identity(t)}
	for _, o := range options {
		o(r)
	}
	r.start()
	return r
}

func identity(t testing.TB) *unseal.Identity {
	t.Helper()
	id, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// start is also a restart: nothing but the directory survives.
func (r *rig) start() {
	r.t.Helper()
	var err error
	if r.id, _, err = keybroker.OpenIdentity(filepath.Join(r.dir, "identity"), pass, rand.Reader); err != nil {
		r.t.Fatal(err)
	}
	set, err := attest.NewVerifiers(word{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.b, err = keybroker.New(keybroker.Config{Identity: r.id, VaultDir: filepath.Join(r.dir, "vault"), Verifiers: set, Random: rand.Reader,
		Now: func() time.Time { return r.now }, Log: slog.New(slog.NewTextHandler(&r.log, nil)), Registerer: prometheus.NewRegistry(),
		AllowedOwners: r.allow, AllowedAgents: r.agent, NodeRate: r.rate})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) descriptor(seq uint64, edit ...func(*sealed.Descriptor)) *sealed.Descriptor {
	until := uint64(r.now.Add(24 * time.Hour).Unix())
	d := &sealed.Descriptor{Name: "hello", Namespace: "openfaas-fn", Sequence: seq, Issued: uint64(r.now.Unix()),
		Config: sealed.Config{Image: "sha256:" + strings.Repeat("ab", 32), Mode: sealed.ModeHTTP, Upstream: "unix",
			Policy: sealed.Policy{AnyCaller: true, Attestation: []string{"word"}, Broker: r.id.SigningKey()}},
		SigningKey: r.fn.SigningKey(), Suites: []uint16{sealed.SuiteSM}, LogRecipient: r.owner.DecryptionKey(),
		Decryption: []sealed.DecryptionKey{{Key: r.fn.DecryptionKey(), NotBefore: 1, NotAfter: until}, {Key: r.old.DecryptionKey(), NotBefore: 1, NotAfter: until}}}
	for _, e := range edit {
		e(d)
	}
	return d
}

func revision(t testing.TB, d *sealed.Descriptor) sealed.Digest {
	t.Helper()
	rev, err := d.Revision()
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// deposit seals d as owner would; edit may falsify the parts.
func (r *rig) deposit(owner *unseal.Identity, d *sealed.Descriptor, edit ...func(*unseal.Deposit, *sealed.GrantParams)) []byte {
	r.t.Helper()
	signed, err := d.Sign(rand.Reader, owner.Signer())
	if err != nil {
		r.t.Fatal(err)
	}
	dep := &unseal.Deposit{Descriptor: signed, Signing: scalar(r.t, r.fn.Signer()),
		Decryption: [][]byte{scalar(r.t, r.fn.Decrypter()), scalar(r.t, r.old.Decrypter())}}
	g := sealed.GrantParams{Role: sealed.RoleDeposit, Recipient: r.id.DecryptionKey(), Sender: owner.Signer(), Name: d.FullName(),
		NotBefore: r.now.Add(-time.Minute), NotAfter: r.now.Add(10 * time.Minute)}
	for _, e := range edit {
		e(dep, &g)
	}
	body, err := unseal.EncodeDeposit(dep)
	if err != nil {
		r.t.Fatal(err)
	}
	grant, err := sealed.NewGrant(g)
	if err != nil {
		r.t.Fatal(err)
	}
	defer grant.Release()
	out, err := grant.Append(nil, sealed.MessageParams{Issued: r.now}, body)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func scalar(t testing.TB, key any) []byte {
	t.Helper()
	k, ok := key.(*unseal.PrivateKey)
	if !ok {
		t.Fatalf("key is a %T", key)
	}
	return k.Scalar()
}

func (r *rig) mustDeposit(d *sealed.Descriptor) {
	r.t.Helper()
	if _, err := r.b.Deposit(bytes.NewReader(r.deposit(r.owner, d))); err != nil {
		r.t.Fatal(err)
	}
}

// sandbox is one that asks for keys.
type sandbox struct {
	key *unseal.PrivateKey
	st  api.Statement
}

func (r *rig) sandbox(rev sealed.Digest) *sandbox {
	r.t.Helper()
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	pub := k.PublicKey()
	return &sandbox{key: k, st: api.Statement{Function: fnName, Revision: rev[:], Ephemeral: pub[:], Nonce: make([]byte, 16), IssuedAtMs: r.now.UnixMilli()}}
}

func (r *rig) ask(node string, s *sandbox, evidence string) (api.ReleaseReply, error) {
	r.t.Helper()
	b, err := cbor.Marshal(s.st)
	if err != nil {
		r.t.Fatal(err)
	}
	agent := sealed.Digest(sm3.Sum([]byte("agent")))
	return r.b.Release(r.t.Context(), node, api.ReleaseRequest{Statement: b,
		Evidence: []api.Evidence{{Type: "word", Data: []byte(evidence + " " + agent.String())}}})
}

func (s *sandbox) open(r *rig, sealedKeys []byte) (*unseal.Release, error) {
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: s.key})
	if err != nil {
		r.t.Fatal(err)
	}
	clock := func() time.Time { return r.now }
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Clock: clock})
	if err != nil {
		r.t.Fatal(err)
	}
	o, err := unseal.NewOpener(unseal.Config{Keys: keys, Replay: replay, Clock: clock})
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := o.Open(bytes.NewReader(sealedKeys), unseal.Expect{Role: sealed.RoleRelease, Name: fnName,
		Context: sealed.Digest(s.st.Revision), Senders: unseal.Only(r.id.SigningKey())})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	b, err := m.ReadAll(4096)
	if err != nil {
		return nil, err
	}
	return unseal.DecodeRelease(b)
}

func wantCode(t *testing.T, err error, want api.Code) {
	t.Helper()
	if api.CodeOf(err) != want {
		t.Errorf("error %v, want code %q", err, want)
	}
}

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
		b, _ := cbor.Marshal(r.sandbox(rev).st)
		_, err := r.b.Release(t.Context(), "n1", api.ReleaseRequest{Statement: b})
		wantCode(t, err, api.CodeKeyRefused)
	})
	t.Run("old statement", func(t *testing.T) {
		s := r.sandbox(rev)
		s.st.IssuedAtMs -= 120_000
		_, err := r.ask("n1", s, "n1")
		wantCode(t, err, api.CodeKeyRefused)
	})
	t.Run("another revision", func(t *testing.T) {
		_, err := r.ask("n1", r.sandbox(sealed.Digest{1}), "n1")
		wantCode(t, err, api.CodeStaleRevision)
	})
	t.Run("unknown function", func(t *testing.T) {
		s := r.sandbox(rev)
		s.st.Function = "other.openfaas-fn"
		_, err := r.ask("n1", s, "n1")
		wantCode(t, err, api.CodeNotFound)
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

func TestNothingOnDiskIsInPlaintextAndChangesAreNoticed(t *testing.T) {
	r := newRig(t)
	d := r.descriptor(1)
	r.mustDeposit(d)
	secrets := [][]byte{scalar(t, r.fn.Signer()), scalar(t, r.fn.Decrypter()), scalar(t, r.old.Decrypter()), pass}
	var vaultFile string
	err := filepath.WalkDir(r.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, s := range secrets {
			if bytes.Contains(b, s) {
				t.Errorf("%s holds secret %d", path, i)
			}
		}
		if info, _ := e.Info(); info.Mode().Perm()&0o077 != 0 && !strings.HasSuffix(path, ".pub") {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.HasSuffix(path, ".keys") {
			vaultFile = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		if bytes.Contains(r.log.Bytes(), s) {
			t.Error("the log holds a secret")
		}
	}
	good, err := os.ReadFile(vaultFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 4, 5, 20, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if err := os.WriteFile(vaultFile, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := r.ask("n1", r.sandbox(revision(t, d)), "n1")
		wantCode(t, err, api.CodeInternal)
	}
	// One function's file does not do for another.
	if err := os.Rename(vaultFile, filepath.Join(filepath.Dir(vaultFile), "other.openfaas-fn.keys")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.b.Functions(); err == nil {
		t.Error("a file moved to another name was read")
	}
}

func TestIdentityNeedsItsPassphrase(t *testing.T) {
	dir := t.TempDir()
	first, created, err := keybroker.OpenIdentity(dir, pass, rand.Reader)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	again, created, err := keybroker.OpenIdentity(dir, pass, rand.Reader)
	if err != nil || created || again.SigningKey() != first.SigningKey() || again.DecryptionKey() != first.DecryptionKey() {
		t.Fatal(created, err)
	}
	if _, _, err := keybroker.OpenIdentity(dir, []byte("wrong wrong"), rand.Reader); !errors.Is(err, unseal.ErrPassphrase) {
		t.Errorf("error %v", err)
	}
	_, _, err = keybroker.OpenIdentity(dir, []byte("short"), rand.Reader)
	wantCode(t, err, api.CodeInvalid)
}

func TestInsecurePassphraseIsKeptAndGuarded(t *testing.T) {
	dir := t.TempDir()
	a, err := keybroker.InsecurePassphrase(dir, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := keybroker.InsecurePassphrase(dir, rand.Reader)
	if err != nil || !bytes.Equal(a, b) || len(a) < 32 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if err := os.Chmod(filepath.Join(dir, "passphrase.insecure"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = keybroker.InsecurePassphrase(dir, rand.Reader)
	wantCode(t, err, api.CodeInvalid)
}
