package coordinator

import (
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// signed makes a management request as key.
func (w *world) signed(key *sm2.PrivateKey, method, path string, body []byte) answer {
	w.t.Helper()
	s := &reqauth.Signer{Key: key, Random: rand.Reader, Now: time.Now}
	auth, err := s.Sign(method, path, sm3.Sum(body))
	if err != nil {
		w.t.Fatal(err)
	}
	return w.do(method, path, api.ContentTypeJSON, body, "Authorization", auth)
}

// put deploys a descriptor as key.
func (w *world) put(key *sm2.PrivateKey, rec api.Revision) answer {
	w.t.Helper()
	b, err := json.Marshal(rec)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.signed(key, "PUT", "/v1/functions/f.ns", b)
}

func TestDeploymentsAreStoredWholeOrNotAtAll(t *testing.T) {
	w := newWorld(t, 1)
	thief, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := w.describe(w.owner, 5)
	of := func(b []byte, ref, bundle string) api.Revision {
		return api.Revision{Descriptor: b, ImageRef: ref, BundleRef: bundle}
	}
	theirs, _ := w.describe(thief, 9)
	old, _ := w.describe(w.owner, 1)
	other, _ := w.describe(w.owner, 9, func(d *sealed.Descriptor) { d.Name = "g" })
	unlimited, _ := w.describe(w.owner, 9, func(d *sealed.Descriptor) { d.Config.Resources.PIDs = 0 })
	bundled, _ := w.describe(w.owner, 9, func(d *sealed.Descriptor) { d.BundleBlob, d.Config.Bundle = imageDigest, sealed.Digest{1} })
	for what, c := range map[string]struct {
		key  *sm2.PrivateKey
		rec  api.Revision
		code api.Code
	}{
		"image not there":                      {w.owner, of(good, "none", ""), api.CodeInvalid},
		"bundle not there":                     {w.owner, of(bundled, "img", "none"), api.CodeInvalid},
		"bundle not there, image of elsewhere": {w.owner, of(bundled, "registry.example/img", "none"), api.CodeInvalid},
		"another's name":                       {thief, of(theirs, "img", ""), api.CodeForbidden},
		"another's descriptor":                 {thief, of(good, "img", ""), api.CodeForbidden},
		"descriptor of another, sent by owner": {w.owner, of(theirs, "img", ""), api.CodeForbidden},
		"sequence of before":                   {w.owner, of(old, "img", ""), api.CodeConflict},
		"another name inside":                  {w.owner, of(other, "img", ""), api.CodeInvalid},
		"no limit of processes":                {w.owner, of(unlimited, "img", ""), api.CodeInvalid},
		"no descriptor":                        {w.owner, of(nil, "img", ""), api.CodeInvalid},
	} {
		if a := w.put(c.key, c.rec); a.code != c.code {
			t.Errorf("%s: %d %s, want %s", what, a.status, a.body, c.code)
		}
		if f := w.state.Get("f.ns"); f.Sequence != 1 {
			t.Fatalf("%s: stored", what)
		}
	}
	if a := w.put(w.owner, of(good, "img", "")); a.status != 200 {
		t.Errorf("the good one: %d %s", a.status, a.body)
	}
	if f := w.state.Get("f.ns"); f.Sequence != 5 {
		t.Errorf("sequence %d", f.Sequence)
	}
}

func TestOnlyListedOwnersDeploy(t *testing.T) {
	w := newWorld(t, 0, func(w *world) { w.cfg.AnyOwner, w.cfg.Owners = false, []sealed.Fingerprint{{1}} })
	b, _ := w.describe(w.owner, 7)
	if a := w.put(w.owner, api.Revision{Descriptor: b, ImageRef: "img"}); a.code != api.CodeForbidden {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestNewRevisionRetiresTheFormerEverywhere(t *testing.T) {
	w := newWorld(t, 3)
	b, _ := w.describe(w.owner, 2, func(d *sealed.Descriptor) { d.Config.ExecMS = 3000 })
	if a := w.put(w.owner, api.Revision{Descriptor: b, ImageRef: "img"}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventually("all nodes are told", func() bool {
		for _, n := range w.nodes {
			if n.retired.Load() != 1 {
				return false
			}
		}
		return true
	})
}

func TestRemovalIsItsOwnersAlone(t *testing.T) {
	w := newWorld(t, 2)
	other, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a := w.signed(other, "DELETE", "/v1/functions/f.ns", nil); a.code != api.CodeForbidden {
		t.Errorf("another: %d %s", a.status, a.body)
	}
	if a := w.do("DELETE", "/v1/functions/f.ns", "", nil); a.code != api.CodeUnauthorized {
		t.Errorf("nobody: %d %s", a.status, a.body)
	}
	if a := w.signed(w.owner, "DELETE", "/v1/functions/f.ns", nil); a.status != 204 {
		t.Errorf("the owner: %d %s", a.status, a.body)
	}
	if a := w.do("GET", "/v1/functions/f.ns", "", nil); a.code != api.CodeNotFound {
		t.Errorf("afterwards: %d %s", a.status, a.body)
	}
}
