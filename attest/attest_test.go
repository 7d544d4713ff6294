package attest_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// enrolled is a cluster of nodes whose "certificate" is the node's id.
type enrolled map[string]*ecdsa.PrivateKey

func (e enrolled) verify(chain [][]byte, _ time.Time) (string, crypto.PublicKey, error) {
	k, ok := e[string(chain[0])]
	if !ok {
		return "", nil, errors.New("unknown authority")
	}
	return string(chain[0]), k.Public(), nil
}

func (e enrolled) collector(t *testing.T, id string) *attest.NodeKeyCollector {
	t.Helper()
	if e[id] == nil {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		e[id] = k
	}
	return &attest.NodeKeyCollector{NodeID: id, AgentDigest: sm3.Sum([]byte("agent")), Random: rand.Reader,
		Now:         func() time.Time { return noon },
		Credentials: func() (crypto.Signer, [][]byte, error) { return e[id], [][]byte{[]byte(id)}, nil }}
}

func (e enrolled) verifier(now time.Time) *attest.NodeKeyVerifier {
	return &attest.NodeKeyVerifier{VerifyChain: e.verify, Now: func() time.Time { return now }}
}

func TestNodeKeyEvidenceNamesTheMachineAndIsMarkedUntrusted(t *testing.T) {
	e := enrolled{}
	st := []byte("a statement")
	ev, err := e.collector(t, "n1").Collect(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	c, err := e.verifier(noon.Add(50*time.Second)).Verify(t.Context(), st, ev)
	if err != nil {
		t.Fatal(err)
	}
	if c.NodeID != "n1" || c.AgentDigest != sm3.Sum([]byte("agent")) || !c.DevUntrusted || c.Tier() != "node-key (dev-untrusted)" {
		t.Errorf("claims %+v, tier %q", c, c.Tier())
	}
}

func TestForgedNodeKeyEvidenceIsRefused(t *testing.T) {
	e := enrolled{}
	st := []byte("a statement")
	good, err := e.collector(t, "n1").Collect(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	e.collector(t, "n2") // enrolled too
	edit := func(change func(m map[int]any)) api.Evidence {
		var m map[int]any
		if err := cbor.Unmarshal(good.Data, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := cbor.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return api.Evidence{Type: good.Type, Data: b}
	}
	stranger := enrolled{}
	foreign, err := stranger.collector(t, "n9").Collect(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		statement string
		ev        api.Evidence
		now       time.Time
		want      string
	}{
		"another statement":   {"another", good, noon, "signature"},
		"too old":             {"a statement", good, noon.Add(301 * time.Second), "clock"},
		"from the future":     {"a statement", good, noon.Add(-61 * time.Second), "clock"},
		"another type":        {"a statement", api.Evidence{Type: "tpm", Data: good.Data}, noon, "type"},
		"node not enrolled":   {"a statement", foreign, noon, "authority"},
		"agent digest edited": {"a statement", edit(func(m map[int]any) { m[3] = make([]byte, 32) }), noon, "signature"},
		"node id edited":      {"a statement", edit(func(m map[int]any) { m[4] = "n2" }), noon, "another node's"},
		"certificate swapped": {"a statement", edit(func(m map[int]any) { m[2] = [][]byte{[]byte("n2")}; m[4] = "n2" }), noon, "signature"},
		"time edited":         {"a statement", edit(func(m map[int]any) { m[5] = noon.UnixMilli() + 1 }), noon, "signature"},
		"no chain":            {"a statement", edit(func(m map[int]any) { m[2] = [][]byte{} }), noon, "chain"},
		"long chain":          {"a statement", edit(func(m map[int]any) { m[2] = make([][]byte, 5) }), noon, "chain"},
		"short agent digest":  {"a statement", edit(func(m map[int]any) { m[3] = []byte{1} }), noon, "agent digest"},
		"version":             {"a statement", edit(func(m map[int]any) { m[1] = 2 }), noon, "version"},
		"unknown field":       {"a statement", edit(func(m map[int]any) { m[9] = 2 }), noon, "CBOR"},
		"trailing byte":       {"a statement", api.Evidence{Type: good.Type, Data: append(good.Data[:len(good.Data):len(good.Data)], 0)}, noon, "CBOR"},
		"empty":               {"a statement", api.Evidence{Type: good.Type}, noon, "CBOR"},
		"huge":                {"a statement", api.Evidence{Type: good.Type, Data: make([]byte, 1<<20)}, noon, "at most"},
	}
	for name, k := range cases {
		t.Run(name, func(t *testing.T) {
			c, err := e.verifier(k.now).Verify(t.Context(), []byte(k.statement), k.ev)
			if err == nil || !strings.Contains(err.Error(), k.want) {
				t.Fatalf("error %v, want one about %q", err, k.want)
			}
			if c != (attest.Claims{}) {
				t.Errorf("claims %+v with an error", c)
			}
		})
	}
}

type liar struct{ typ, claims string }

func (l liar) Type() string { return l.typ }
func (l liar) Verify(context.Context, []byte, api.Evidence) (attest.Claims, error) {
	return attest.Claims{Type: l.claims}, nil
}

func TestVerifiersFailClosed(t *testing.T) {
	e := enrolled{}
	st := []byte("s")
	ev, err := e.collector(t, "n1").Collect(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	set, err := attest.NewVerifiers(e.verifier(noon), liar{"weak", "tdx"})
	if err != nil {
		t.Fatal(err)
	}
	empty, err := attest.NewVerifiers()
	if err != nil {
		t.Fatal(err)
	}
	unknown := api.Evidence{Type: "quantum", Data: []byte("x")}
	cases := map[string]struct {
		set      *attest.Verifiers
		evidence []api.Evidence
		accepted []string
		ok       bool
	}{
		"accepted":                    {set, []api.Evidence{ev}, []string{"node-key"}, true},
		"accepted among others":       {set, []api.Evidence{unknown, ev}, []string{"node-key", "tpm"}, true},
		"no evidence":                 {set, nil, []string{"node-key"}, false},
		"owner accepts nothing":       {set, []api.Evidence{ev}, nil, false},
		"owner wants better":          {set, []api.Evidence{ev}, []string{"tdx"}, false},
		"type unknown to the broker":  {set, []api.Evidence{unknown}, []string{"quantum"}, false},
		"no verifiers":                {empty, []api.Evidence{ev}, []string{"node-key"}, false},
		"verifier raises its own":     {set, []api.Evidence{{Type: "weak"}}, []string{"weak", "tdx"}, false},
		"relabelled as a better type": {set, []api.Evidence{{Type: "tdx", Data: ev.Data}}, []string{"tdx", "node-key"}, false},
		"too many":                    {set, append(make([]api.Evidence, 8), ev), []string{"node-key"}, false},
	}
	for name, k := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := k.set.Verify(t.Context(), st, k.evidence, k.accepted)
			if k.ok != (err == nil) {
				t.Fatalf("error %v", err)
			}
			if err != nil && api.CodeOf(err) != api.CodeKeyRefused {
				t.Errorf("code %s", api.CodeOf(err))
			}
		})
	}
	if _, err := attest.NewVerifiers(e.verifier(noon), e.verifier(noon)); err == nil {
		t.Error("one type twice was accepted")
	}
}

func TestStatementIsCheckedStrictly(t *testing.T) {
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := sealed.PublicKeyOf(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	good := api.Statement{Ephemeral: pub[:],
		Nonce: make([]byte, 16), IssuedAtMs: noon.UnixMilli()}
	encode := func(s any) []byte {
		b, err := cbor.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	got, err := attest.ParseStatement(encode(good), noon)
	if err != nil || got.Ephemeral != pub {
		t.Fatalf("%+v, %v", got, err)
	}
	bad := map[string]func(s *api.Statement){
		"ephemeral": func(s *api.Statement) { s.Ephemeral = make([]byte, 65) },
		"nonce":     func(s *api.Statement) { s.Nonce = nil },
		"old":       func(s *api.Statement) { s.IssuedAtMs -= 301_000 },
		"future":    func(s *api.Statement) { s.IssuedAtMs += 61_000 },
	}
	for name, change := range bad {
		s := good
		change(&s)
		if _, err := attest.ParseStatement(encode(s), noon); api.CodeOf(err) != api.CodeKeyRefused {
			t.Errorf("%s: error %v", name, err)
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "junk": []byte("junk"), "trailing": append(encode(good), 0),
		"huge": make([]byte, 2000), "unknown key": encode(map[int]any{1: good.Ephemeral, 2: good.Nonce, 3: good.IssuedAtMs, 7: 1})} {
		if _, err := attest.ParseStatement(b, noon); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzParseStatement(f *testing.F) {
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, b []byte) { attest.ParseStatement(b, noon) })
}

func TestMeasureFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(p, []byte("binary"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := attest.MeasureFile(p)
	if err != nil || got != sm3.Sum([]byte("binary")) {
		t.Fatalf("%s, %v", got, err)
	}
	if _, err := attest.MeasureFile(p + "x"); err == nil {
		t.Error("a missing file was measured")
	}
}
