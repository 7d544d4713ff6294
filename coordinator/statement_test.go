package coordinator

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// statement is a signed one of f.ns: revision w.rev at sequence 1 with old percent,
// and next at sequence 2 with the rest.
func (w *world) statement(owner *sm2.PrivateKey, seq uint64, next string, old uint64, edit ...func(*sealed.Traffic)) []byte {
	w.t.Helper()
	rev, err := sealed.ParseDigest(next)
	if err != nil {
		w.t.Fatal(err)
	}
	now := uint64(time.Now().Unix())
	st := &sealed.Traffic{Name: "f", Namespace: "ns", Sequence: seq, Issued: now, Expires: now + 3600,
		Shares: []sealed.Share{{Revision: w.rev, Sequence: 1, Percent: old}, {Revision: rev, Sequence: 2, Percent: 100 - old}}}
	for _, e := range edit {
		e(st)
	}
	b, err := st.Sign(rand.Reader, owner)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// alone waits until a revision serves and no other does, not even for a moment yet.
func (w *world) alone(revision string) {
	w.t.Helper()
	for deadline := time.Now().Add(drainFor + 30*time.Second); ; time.Sleep(20 * time.Millisecond) {
		if st := w.described(); st.Revision == revision && len(st.Serving) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s does not serve alone: %+v", revision, w.described())
		}
	}
}

func (w *world) say(statement []byte) answer {
	w.t.Helper()
	b, err := json.Marshal(api.Traffic{Statement: statement})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.signed(w.owner, "POST", "/v1/functions/f.ns/traffic", b)
}

func TestAStatementBringsAFormerRevisionBeside(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 2, with)
	p := api.DefaultScale()
	p.Min, p.Zero = 2, false
	w.policy(p)
	old := w.fn.Revision
	next := w.update(2, 2000)
	w.alone(next)
	if a := w.send(w.message(10, time.Minute)); a.code != api.CodeStaleRevision {
		t.Fatalf("sealed for the old one: %d %s", a.status, a.body)
	}
	first := w.statement(w.owner, 10, next, 90)
	if a := w.say(first); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	st := w.described()
	if st.Revision != next || !bytes.Equal(st.Traffic, first) || len(st.Serving) != 2 || st.Serving[0].Percent != 10 || st.Serving[1].Percent != 90 ||
		st.Serving[1].Revision != old || len(st.Serving[1].Descriptor) == 0 {
		t.Errorf("%+v", st)
	}
	if a := w.send(w.message(10, time.Minute)); a.status != 200 || a.header.Get(api.HeaderStated) != "10" {
		t.Errorf("sealed for the old one: %d %s, %v", a.status, a.body, a.header)
	}
	w.eventually("the old one has replicas of its own", func() bool { n, _ := f.total(old); return n > 0 })

	// What was said before is refused, and so is what is said twice.
	for seq, why := range map[uint64]string{2: "a number that a descriptor has", 9: "older", 10: "again"} {
		b := first
		if seq == 2 {
			continue // it cannot be signed
		}
		if seq != 10 {
			b = w.statement(w.owner, seq, next, 50)
		}
		if a := w.say(b); a.code != api.CodeConflict {
			t.Errorf("%s: %d %s", why, a.status, a.body)
		}
	}
	// Nor does a descriptor that is older than the statement come.
	b, _ := w.describe(w.owner, 8)
	if a := w.put(w.owner, api.Revision{Descriptor: b, ImageRef: "img"}); a.code != api.CodeConflict {
		t.Errorf("a descriptor below the statement: %d %s", a.status, a.body)
	}

	// All to the latest: the old one drains.
	if a := w.say(w.statement(w.owner, 11, next, 0, func(st *sealed.Traffic) { st.Shares = st.Shares[1:] })); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if st := w.described(); len(st.Serving) != 2 || st.Serving[1].State != api.RevisionDraining {
		t.Errorf("%+v", st.Serving)
	}
	w.alone(next)
	if a := w.send(w.message(10, time.Minute)); a.code != api.CodeStaleRevision {
		t.Errorf("sealed for the old one: %d %s", a.status, a.body)
	}
}

func TestADivisionOutlivesWhatItsOwnerSaysItDoes(t *testing.T) {
	for name, c := range map[string]struct {
		exec   uint64 // of the deployment that follows; 2000 is the current one's
		stated bool
		stays  bool
	}{
		"the same content signed anew, with a statement":    {2000, true, true},
		"the same content signed anew, without one":         {2000, false, false},
		"other content, with a statement that names others": {3000, true, false},
		"other content, without one":                        {3000, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			f, with := replicated(10)
			w := newWorld(t, 1, with)
			old := w.fn.Revision
			next := w.update(2, 2000)
			f.set(func() { f.have["node-1"][next], f.have["node-1"][old] = 1, 1 })
			if a := w.say(w.statement(w.owner, 10, next, 40)); a.status != 204 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			b, rev := w.describe(w.owner, 20, func(d *sealed.Descriptor) { d.Config.ExecMS = c.exec })
			f.set(func() { f.fails[rev.String()] = "" })
			r := api.Revision{Descriptor: b, ImageRef: "img"}
			if c.stated {
				r.Traffic = w.statement(w.owner, 21, next, 40, func(st *sealed.Traffic) {
					if c.exec == 2000 {
						st.Shares[1].Sequence = 20
						return
					}
					st.Shares = []sealed.Share{{Revision: st.Shares[1].Revision, Sequence: 2, Percent: 100}, {Revision: rev, Sequence: 20}}
				})
			}
			if a := w.put(w.owner, r); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			st := w.described()
			states := map[string]string{}
			for _, s := range st.Serving {
				states[s.Revision] = s.State
			}
			want := api.RevisionDraining
			if c.stays {
				want = api.RevisionBeside
			}
			if states[old] != want || (len(st.Traffic) > 0) != c.stated || st.Revision != next {
				t.Errorf("%v, a statement: %v", states, len(st.Traffic) > 0)
			}
			// The number of the last statement is above, whatever became of it.
			b, _ = w.describe(w.owner, 20, func(d *sealed.Descriptor) { d.Config.ExecMS = 4000 })
			if a := w.put(w.owner, api.Revision{Descriptor: b, ImageRef: "img"}); a.code != api.CodeConflict {
				t.Errorf("an old number: %d %s", a.status, a.body)
			}
		})
	}
}

func TestAStatementEndsByItself(t *testing.T) {
	_, with := replicated(10)
	w := newWorld(t, 1, with)
	next := w.update(2, 2000)
	if a := w.say(w.statement(w.owner, 10, next, 50, func(st *sealed.Traffic) { st.Expires = st.Issued + 2 })); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if st := w.described(); len(st.Serving) != 2 || len(st.Traffic) == 0 {
		t.Fatalf("%+v", st)
	}
	w.eventually("the old one drains", func() bool {
		st := w.described()
		return len(st.Serving) == 2 && st.Serving[1].State == api.RevisionDraining && len(st.Traffic) == 0
	})
}

func TestWrongStatementsAreRefused(t *testing.T) {
	_, with := replicated(10)
	w := newWorld(t, 1, with)
	next := w.update(2, 2000)
	stranger, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := w.statement(w.owner, 10, next, 90)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	of := func(edit func(*sealed.Traffic)) []byte { return w.statement(w.owner, 10, next, 90, edit) }
	for name, c := range map[string]struct {
		statement []byte
		code      api.Code
	}{
		"by another key":             {w.statement(stranger, 10, next, 90), api.CodeForbidden},
		"a bit flipped":              {flipped, api.CodeForbidden},
		"cut":                        {good[:len(good)-1], api.CodeInvalid},
		"no statement":               {[]byte("FST1"), api.CodeInvalid},
		"of another function":        {of(func(st *sealed.Traffic) { st.Name = "g" }), api.CodeInvalid},
		"expired":                    {of(func(st *sealed.Traffic) { st.Issued -= 7200 }), "window"},
		"of the future":              {of(func(st *sealed.Traffic) { st.Issued += 60 }), "window"},
		"without the current one":    {of(func(st *sealed.Traffic) { st.Shares = st.Shares[:1]; st.Shares[0].Percent = 100 }), api.CodeConflict},
		"of an unknown revision":     {of(func(st *sealed.Traffic) { st.Shares[0].Revision = sealed.Digest{1} }), api.CodeConflict},
		"of an unknown descriptor":   {of(func(st *sealed.Traffic) { st.Shares[1].Sequence = 3 }), api.CodeConflict},
		"of another of the revision": {w.statement(w.owner, 10, next, 90, func(st *sealed.Traffic) { st.Sequence, st.Shares[1].Sequence = 12, 11 }), api.CodeConflict},
	} {
		if name == "expired" {
			c.statement = of(func(st *sealed.Traffic) { st.Issued -= 7200; st.Expires = st.Issued + 3600 })
		}
		a := w.say(c.statement)
		if a.code != c.code {
			t.Errorf("%s: %d %s, want %s", name, a.status, a.body, c.code)
		}
	}
	if st := w.described(); st.Revision != next || len(st.Serving) > 0 || len(st.Traffic) > 0 {
		t.Errorf("%+v", st)
	}
	// The owner's statement in another's request, and in one that nobody signed.
	b, err := json.Marshal(api.Traffic{Statement: good})
	if err != nil {
		t.Fatal(err)
	}
	if a := w.signed(stranger, "POST", "/v1/functions/f.ns/traffic", b); a.code != api.CodeForbidden {
		t.Errorf("in another's request: %d %s", a.status, a.body)
	}
	if a := w.do("POST", "/v1/functions/f.ns/traffic", "", b); a.status != 401 {
		t.Errorf("in nobody's request: %d %s", a.status, a.body)
	}
	if a := w.signed(w.owner, "POST", "/v1/functions/f.ns/traffic", []byte(`{"percent":{"`+next[:8]+`":100}}`)); a.code != api.CodeConflict {
		t.Errorf("shares that nobody signed: %d %s", a.status, a.body)
	}
	if a := w.say(good); a.status != 204 {
		t.Errorf("the right one: %d %s", a.status, a.body)
	}
}

func TestARevisionOfAnotherOwnerIsNotBroughtBack(t *testing.T) {
	w := newWorld(t, 1)
	next := w.update(2, 2000)
	stranger, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, rev := w.describe(stranger, 1, func(d *sealed.Descriptor) { d.Config.ExecMS = 9000 })
	other := &store.Function{Name: "f.ns", Revision: rev.String(), Sequence: 1, Owner: w.fn.Owner, Descriptor: b}
	f := *w.stored(t)
	if err := divideSealed(&f, []*store.Function{other}, w.statement(w.owner, 10, next, 90, func(st *sealed.Traffic) { st.Shares[0].Revision = rev })); api.CodeOf(err) != api.CodeForbidden {
		t.Error(err)
	}
}

// stored is f.ns as it is stored.
func (w *world) stored(t *testing.T) *store.Function {
	t.Helper()
	f, err := w.c.dep.Store.GetFunction(t.Context(), "f.ns")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTheOldRevisionCanStartWhileTheNewOneIsOnItsWayAsItsOwnerSays(t *testing.T) {
	for _, stated := range []bool{true, false} {
		f, with := replicated(10)
		w := newWorld(t, 2, with)
		p := api.DefaultScale()
		p.Min, p.Max, p.Zero = 2, 4, false
		w.policy(p)
		old := w.fn.Revision
		w.eventually("the old one has its replicas", func() bool { n, _ := f.total(old); return n == 2 })
		b, rev := w.describe(w.owner, 2, func(d *sealed.Descriptor) { d.Config.ExecMS = 2000 })
		f.set(func() { f.fails[rev.String()] = "" }) // it is not ready for as long as this test takes
		r := api.Revision{Descriptor: b, ImageRef: "img", Scale: &p}
		if stated {
			r.Traffic = w.statement(w.owner, 3, rev.String(), 100)
		}
		if a := w.put(w.owner, r); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		st := w.described()
		if st.Revision != old || (len(st.Traffic) > 0) != stated {
			t.Fatalf("%+v", st)
		}
		route, err := w.c.routeOf("f.ns")
		if err != nil || route.former() == stated || route.beside(rev.String()).former() {
			t.Errorf("stated %v: keys of the old one %v, of the new one %v, %v", stated, !route.former(), !route.beside(rev.String()).former(), err)
		}
	}
}
