package keybroker_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// fleet is two enrolled machines, whose evidence the rig's broker verifies.
type fleet struct {
	*rig
	keys     map[string]*ecdsa.PrivateKey
	expelled bool // all of them, from now on
	d        *sealed.Descriptor
}

func newFleet(t testing.TB, options ...func(*rig)) *fleet {
	t.Helper()
	f := &fleet{keys: map[string]*ecdsa.PrivateKey{}}
	for _, id := range []string{"n1", "n2"} {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		f.keys[id] = k
	}
	set, err := attest.NewVerifiers(&attest.NodeKeyVerifier{Now: func() time.Time { return f.now },
		VerifyChain: func(chain [][]byte, _ time.Time) (string, crypto.PublicKey, error) {
			k, ok := f.keys[string(chain[0])]
			if !ok || f.expelled {
				return "", nil, errors.New("not enrolled")
			}
			return string(chain[0]), k.Public(), nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	f.rig = newRig(t, append(options, func(r *rig) { r.set = set })...)
	f.d = f.descriptor(1, acceptsNodeKey)
	f.mustDeposit(f.d)
	return f
}

func acceptsNodeKey(d *sealed.Descriptor) { d.Config.Policy.Attestation = []string{attest.TypeNodeKey} }

// asks is what a sandbox on node sends to have the keys of d.
func (f *fleet) asks(node string, d *sealed.Descriptor) api.ReleaseRequest {
	f.t.Helper()
	rev, err := d.Revision()
	if err != nil {
		f.t.Fatal(err)
	}
	st, err := cbor.Marshal(f.sandbox(rev).st)
	if err != nil {
		f.t.Fatal(err)
	}
	c := &attest.NodeKeyCollector{NodeID: node, AgentDigest: sm3.Sum([]byte("agent")), Random: rand.Reader, Now: func() time.Time { return f.now },
		Credentials: func() (crypto.Signer, [][]byte, error) { return f.keys[node], [][]byte{[]byte(node)}, nil }}
	ev, err := c.Collect(f.t.Context(), st)
	if err != nil {
		f.t.Fatal(err)
	}
	return api.ReleaseRequest{Function: d.FullName(), Revision: rev.String(), Statement: st, Evidence: []api.Evidence{ev}}
}

func (f *fleet) attest(node string, req api.ReleaseRequest) error {
	return f.b.Attest(f.t.Context(), node, api.AttestRequest{Statement: req.Statement, Evidence: req.Evidence})
}

func (f *fleet) release(node string, req api.ReleaseRequest) error {
	_, err := f.b.Release(f.t.Context(), node, req)
	return err
}

// Evidence that was handed in and verified gives nobody anything that it would
// not give without.
func TestEvidenceHandedInDecidesNothing(t *testing.T) {
	cases := map[string]struct {
		node string // who asks; n1 handed in
		do   func(f *fleet, req *api.ReleaseRequest)
		want api.Code
	}{
		"nothing happens": {"n1", func(*fleet, *api.ReleaseRequest) {}, ""},
		"minutes pass":    {"n1", func(f *fleet, _ *api.ReleaseRequest) { f.now = f.now.Add(4 * time.Minute) }, ""},
		"the broker starts anew": {"n1", func(f *fleet, _ *api.ReleaseRequest) {
			f.start()
		}, ""},
		"another node shows it": {"n2", func(*fleet, *api.ReleaseRequest) {}, api.CodeKeyRefused},
		"a bit of the evidence": {"n1", func(_ *fleet, req *api.ReleaseRequest) {
			b := bytes.Clone(req.Evidence[0].Data)
			b[len(b)-1] ^= 1
			req.Evidence = []api.Evidence{{Type: req.Evidence[0].Type, Data: b}}
		}, api.CodeKeyRefused},
		"a bit of the statement's time": {"n1", func(_ *fleet, req *api.ReleaseRequest) {
			req.Statement = bytes.Clone(req.Statement)
			req.Statement[len(req.Statement)-1] ^= 1
		}, api.CodeKeyRefused},
		"another sandbox's statement": {"n1", func(f *fleet, req *api.ReleaseRequest) {
			req.Statement = f.asks("n1", f.d).Statement
		}, api.CodeKeyRefused},
		"another type on the label": {"n1", func(_ *fleet, req *api.ReleaseRequest) {
			req.Evidence = []api.Evidence{{Type: "tdx", Data: req.Evidence[0].Data}}
		}, api.CodeKeyRefused},
		"no evidence at the release": {"n1", func(_ *fleet, req *api.ReleaseRequest) { req.Evidence = nil }, api.CodeKeyRefused},
		"it expires": {"n1", func(f *fleet, _ *api.ReleaseRequest) {
			f.now = f.now.Add(attest.MaxAge + time.Second)
		}, api.CodeKeyRefused},
		"the clock is set back": {"n1", func(f *fleet, _ *api.ReleaseRequest) {
			f.now = f.now.Add(-attest.MaxSkew - time.Second)
		}, api.CodeKeyRefused},
		"the machine is expelled": {"n1", func(f *fleet, _ *api.ReleaseRequest) { f.expelled = true }, api.CodeKeyRefused},
		"the agent is allowed no more": {"n1", func(f *fleet, _ *api.ReleaseRequest) {
			f.rig.agent = []sealed.Digest{sm3.Sum([]byte("a newer agent"))}
			f.start() // the verifiers, and what they know, are the same
		}, api.CodeKeyRefused},
		"the owner wants better": {"n1", func(f *fleet, req *api.ReleaseRequest) {
			f.mustDeposit(f.descriptor(2, func(d *sealed.Descriptor) { d.Config.Policy.Attestation = []string{"tdx"} }))
			req.Revision = revision(f.t, f.descriptor(2, func(d *sealed.Descriptor) { d.Config.Policy.Attestation = []string{"tdx"} })).String()
		}, api.CodeKeyRefused},
		"the owner deploys again": {"n1", func(f *fleet, _ *api.ReleaseRequest) {
			f.mustDeposit(f.descriptor(2, acceptsNodeKey, func(d *sealed.Descriptor) {
				d.Config.Mode, d.Config.Upstream = sealed.ModeHTTP, "http://127.0.0.1:8080"
			}))
		}, api.CodeStaleRevision},
		"its function is another's": {"n1", func(f *fleet, req *api.ReleaseRequest) {
			if err := f.release("n1", *req); err != nil {
				f.t.Fatal(err)
			}
			other := f.descriptor(1, acceptsNodeKey, func(d *sealed.Descriptor) { d.Name = "second" })
			f.mustDeposit(other)
			req.Function, req.Revision = other.FullName(), revision(f.t, other).String()
		}, api.CodeKeyRefused},
	}
	id := newRig(t).id
	for name, k := range cases {
		for _, before := range []string{"", "handed in", "released"} {
			t.Run(name+" "+before, func(t *testing.T) {
				f := newFleet(t, func(r *rig) { r.as = id })
				req := f.asks("n1", f.d)
				switch before {
				case "handed in":
					if err := f.attest("n1", req); err != nil {
						t.Fatal(err)
					}
				case "released":
					if err := f.release("n1", req); err != nil {
						t.Fatal(err)
					}
				}
				k.do(f, &req)
				want := k.want
				wantCode(t, f.release(k.node, req), want)
			})
		}
	}
}

func TestHandingInIsCheckedAsAReleaseIs(t *testing.T) {
	f := newFleet(t)
	req := f.asks("n1", f.d)
	wantCode(t, f.attest("n2", req), api.CodeKeyRefused)
	wantCode(t, f.attest("n1", api.ReleaseRequest{Statement: []byte("junk"), Evidence: req.Evidence}), api.CodeKeyRefused)
	wantCode(t, f.attest("n1", api.ReleaseRequest{Statement: req.Statement}), api.CodeKeyRefused)
	wantCode(t, f.attest("n1", api.ReleaseRequest{Statement: req.Statement, Evidence: make([]api.Evidence, 100)}), api.CodeKeyRefused)
	f.rig.agent = []sealed.Digest{sm3.Sum([]byte("a newer agent"))}
	f.start()
	wantCode(t, f.attest("n1", req), api.CodeKeyRefused)
	if !bytes.Contains(f.log.Bytes(), []byte("would refuse")) {
		t.Error("nothing is in the log")
	}
}

func TestANodesFloodOfEvidenceIsItsOwnTrouble(t *testing.T) {
	f := newFleet(t, func(r *rig) { r.rate = keybroker.Rate{PerSecond: 1, Burst: 2} })
	for _, want := range []api.Code{"", "", api.CodeBusy, api.CodeBusy} {
		wantCode(t, f.attest("n1", f.asks("n1", f.d)), want)
	}
	wantCode(t, f.release("n1", f.asks("n1", f.d)), "") // its releases have a bucket of their own
	wantCode(t, f.attest("n2", f.asks("n2", f.d)), "")
	wantCode(t, f.release("n2", f.asks("n2", f.d)), "")
}
