package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// machine makes evidence, and is the authority that knows it.
type machine struct {
	t       *testing.T
	key     *ecdsa.PrivateKey
	now     time.Time
	refused error // by the authority, from now on
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &machine{t: t, key: k, now: noon}
}

func (m *machine) collect(statement []byte) api.Evidence {
	m.t.Helper()
	c := &NodeKeyCollector{NodeID: "n1", Random: rand.Reader, Now: func() time.Time { return m.now },
		Credentials: func() (crypto.Signer, [][]byte, error) { return m.key, [][]byte{[]byte("n1")}, nil }}
	ev, err := c.Collect(m.t.Context(), statement)
	if err != nil {
		m.t.Fatal(err)
	}
	return ev
}

func (m *machine) verifier() *NodeKeyVerifier {
	return &NodeKeyVerifier{Now: func() time.Time { return m.now }, VerifyChain: func(chain [][]byte, _ time.Time) (string, crypto.PublicKey, error) {
		if m.refused != nil || string(chain[0]) != "n1" {
			return "", nil, errors.Join(m.refused, errors.New("unknown authority"))
		}
		return "n1", m.key.Public(), nil
	}}
}

func (m *machine) kept(v *NodeKeyVerifier) (n int) {
	for key := range v.good.node["n1"].at {
		if v.good.has("n1", key, m.now) {
			n++
		}
	}
	return n
}

func TestASignatureIsVerifiedOnceWithinMinutes(t *testing.T) {
	m := newMachine(t)
	v, st := m.verifier(), []byte("statement")
	ev := m.collect(st)
	first, err := v.Verify(t.Context(), st, ev)
	if err != nil || m.kept(v) != 1 {
		t.Fatalf("%v, %d kept", err, m.kept(v))
	}
	again, err := v.Verify(t.Context(), st, ev)
	if err != nil || again != first || m.kept(v) != 1 {
		t.Errorf("%+v, %v, want %+v; %d kept", again, err, first, m.kept(v))
	}
	// That it is not computed again shows where it would come out otherwise.
	digest, sig := make([]byte, 32), []byte("no signature")
	if v.good.check("n1", &m.key.PublicKey, digest, sig, m.now) {
		t.Fatal("no signature was taken for one")
	}
	key, err := verifiedKey(&m.key.PublicKey, digest, sig)
	if err != nil {
		t.Fatal(err)
	}
	v.good.add("n1", key, m.now)
	if !v.good.check("n1", &m.key.PublicKey, digest, sig, m.now) {
		t.Error("it was computed again")
	}
	if v.good.check("n2", &m.key.PublicKey, digest, sig, m.now) || v.good.check("n1", &newMachine(t).key.PublicKey, digest, sig, m.now) {
		t.Error("it serves another node, or another key")
	}
	m.now = noon.Add(MaxAge + time.Millisecond)
	if v.good.check("n1", &m.key.PublicKey, digest, sig, m.now) {
		t.Error("it outlives evidence")
	}
}

func TestBadSignaturesAreNotRemembered(t *testing.T) {
	m := newMachine(t)
	v := m.verifier()
	ev := m.collect([]byte("statement"))
	for range 2 {
		if _, err := v.Verify(t.Context(), []byte("another"), ev); err == nil {
			t.Fatal("taken")
		}
	}
	if len(v.good.node) != 0 {
		t.Error("something is remembered")
	}
}

// Whatever a verifier that has seen the evidence takes, a new one takes too.
func TestWhatWasSeenHelpsNothingElse(t *testing.T) {
	m := newMachine(t)
	seen, st := m.verifier(), []byte("statement")
	ev := m.collect(st)
	compare := func(what string, st []byte, ev api.Evidence) (err error) {
		t.Helper()
		want, werr := m.verifier().Verify(t.Context(), st, ev)
		got, err := seen.Verify(t.Context(), st, ev)
		if (werr == nil) != (err == nil) || got != want {
			t.Errorf("%s: %+v, %v; a new verifier says %+v, %v", what, got, err, want, werr)
		}
		return err
	}
	if err := compare("as it is", st, ev); err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(ev.Data) {
		b := bytes.Clone(ev.Data)
		b[bit/8] ^= 1 << (bit % 8)
		if compare(fmt.Sprintf("evidence with bit %d changed", bit), st, api.Evidence{Type: ev.Type, Data: b}) == nil {
			t.Errorf("evidence with bit %d changed is taken", bit)
		}
	}
	for bit := range 8 * len(st) {
		b := bytes.Clone(st)
		b[bit/8] ^= 1 << (bit % 8)
		if compare("a statement with a bit changed", b, ev) == nil {
			t.Errorf("statement with bit %d changed is taken", bit)
		}
	}
	for _, at := range []time.Duration{MaxAge + time.Second, -MaxSkew - time.Second} {
		m.now = noon.Add(at)
		if compare("at another time", st, ev) == nil {
			t.Errorf("%s later it is taken", at)
		}
	}
	m.now = noon.Add(-MaxSkew / 2) // the clock was set back by less than evidence may be ahead
	if n := m.kept(seen); n != 0 {
		t.Errorf("%d verdicts of a time to come are used", n)
	}
	if err := compare("with the clock set back", st, ev); err != nil {
		t.Error(err)
	}
	m.refused = errors.New("expelled")
	if compare("of a machine that was expelled since", st, ev) == nil {
		t.Error("a machine that was expelled is taken")
	}
	m.refused = nil
	m.key = newMachine(t).key
	if compare("of a machine with a new key", st, ev) == nil {
		t.Error("a signature of the former key is taken")
	}
}

func numbered(i int) (k [32]byte) { binary.BigEndian.PutUint64(k[:], uint64(i)); return k }

func TestOneNodesFloodLeavesOthersAlone(t *testing.T) {
	var v verified
	v.add("quiet", numbered(0), noon)
	for i := range 10 * verifiedPerNode {
		v.add("flood", numbered(i), noon)
	}
	if !v.has("quiet", numbered(0), noon) {
		t.Error("another node's was given up")
	}
	if n := len(v.node["flood"].at); n != verifiedPerNode {
		t.Errorf("%d are remembered of one node", n)
	}
	if last := 10*verifiedPerNode - 1; !v.has("flood", numbered(last), noon) || v.has("flood", numbered(last-verifiedPerNode), noon) {
		t.Error("it is not the last ones that are remembered")
	}
	for range verifiedPerNode { // the same one takes one place
		v.add("quiet", numbered(1), noon)
	}
	if !v.has("quiet", numbered(0), noon) {
		t.Error("one that came often displaced another")
	}
	for i := range 2 * verifiedNodes {
		v.add(fmt.Sprint(i), numbered(i), noon)
	}
	if len(v.node) != verifiedNodes || !v.has("quiet", numbered(0), noon) {
		t.Errorf("%d nodes, or an early one was given up", len(v.node))
	}
	later := noon.Add(MaxAge + time.Second)
	if v.add("late", numbered(0), later); !v.has("late", numbered(0), later) || len(v.node) != 1 {
		t.Errorf("%d nodes are left when all were old", len(v.node))
	}
}
