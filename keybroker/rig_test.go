package keybroker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
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
	set   *attest.Verifiers   // believes words unless it is set
	as    *keybroker.Identity // opened before, which takes a while

	signed map[*sealed.Descriptor][]byte // what keep signed
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
	if r.id = r.as; r.id == nil {
		if r.id, _, err = keybroker.OpenIdentity(filepath.Join(r.dir, "identity"), pass, rand.Reader); err != nil {
			r.t.Fatal(err)
		}
	}
	set := r.set
	if set == nil {
		if set, err = attest.NewVerifiers(word{}); err != nil {
			r.t.Fatal(err)
		}
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
	fn  string
	rev sealed.Digest
	st  api.Statement
}

func (r *rig) sandbox(rev sealed.Digest) *sandbox {
	r.t.Helper()
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	pub := k.PublicKey()
	return &sandbox{key: k, fn: fnName, rev: rev, st: api.Statement{Ephemeral: pub[:], Nonce: make([]byte, 16), IssuedAtMs: r.now.UnixMilli()}}
}

func (r *rig) ask(node string, s *sandbox, evidence string) (api.ReleaseReply, error) {
	r.t.Helper()
	b, err := cbor.Marshal(s.st)
	if err != nil {
		r.t.Fatal(err)
	}
	agent := sealed.Digest(sm3.Sum([]byte("agent")))
	return r.b.Release(r.t.Context(), node, api.ReleaseRequest{Function: s.fn, Revision: s.rev.String(), Statement: b,
		Evidence: []api.Evidence{{Type: "word", Data: []byte(evidence + " " + agent.String())}}})
}

func (s *sandbox) open(r *rig, sealedKeys []byte) (*unseal.Release, error) {
	b, err := s.opened(r, fnName, sealedKeys, 4096)
	if err != nil {
		return nil, err
	}
	return unseal.DecodeRelease(b)
}

// opened is what an agent reads in a release for a function, of at most limit bytes.
func (s *sandbox) opened(r *rig, fn string, release []byte, limit int64) ([]byte, error) {
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
	m, err := o.Open(bytes.NewReader(release), unseal.Expect{Role: sealed.RoleRelease, Name: fn, Context: s.rev, Senders: unseal.Only(r.id.SigningKey())})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return m.ReadAll(limit)
}

func wantCode(t *testing.T, err error, want api.Code) {
	t.Helper()
	if api.CodeOf(err) != want {
		t.Errorf("error %v, want code %q", err, want)
	}
}
