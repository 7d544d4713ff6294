package client_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// stage is a gateway that offers what a test says of fn, and serves nobody.
type stage struct {
	t     *testing.T
	owner *unseal.Identity
	keys  *unseal.Identity

	mu     sync.Mutex
	offer  api.FunctionStatus
	fetch  int
	sealed []sealedCall
}

type sealedCall struct {
	revision sealed.Digest
	id       string
}

// newStage gives a caller who has pinned the owner.
func newStage(t *testing.T) (*stage, *client.Client) {
	s := &stage{t: t, owner: identity(t), keys: identity(t)}
	c := newCluster(t)
	c.Intercept = s.serve
	pins := new(client.Pins)
	if err := pins.SetOwner(c.URL, string(fn), s.owner.SigningKey().Fingerprint()); err != nil {
		t.Fatal(err)
	}
	return s, c.client(identity(t), func(cfg *client.Config) { cfg.Pins = pins })
}

func (s *stage) serve(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodGet {
		s.fetch++
		json.NewEncoder(w).Encode(s.offer)
		return true
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	p, err := sealed.Peek(b)
	if err != nil {
		s.t.Error(err)
	}
	s.sealed = append(s.sealed, sealedCall{p.Grant.Context, r.Header.Get(api.HeaderCallID)})
	clienttest.Fail(w, &api.Error{Code: api.CodeStaleRevision, Message: "it is a stage"})
	return true
}

// revision is a descriptor of fn, and as a listing has it.
func (s *stage) revision(seq uint64, owner *unseal.Identity, edit ...func(*sealed.Descriptor)) (*sealed.Descriptor, api.RevisionStatus) {
	s.t.Helper()
	now := time.Now()
	d := &sealed.Descriptor{Name: "echo", Namespace: "openfaas-fn", Sequence: seq, Issued: uint64(now.Unix()), Suites: []uint16{sealed.SuiteSM},
		Config:     sealed.Config{Image: "sha256:" + strings.Repeat("0a", 32), Mode: "http", Upstream: "unix", ExecMS: 1000 * seq, Policy: sealed.Policy{AnyCaller: true}},
		SigningKey: s.keys.SigningKey(), Decryption: []sealed.DecryptionKey{{Key: s.keys.DecryptionKey(), NotBefore: 1, NotAfter: uint64(now.Add(time.Hour).Unix())}}}
	for _, e := range edit {
		e(d)
	}
	b, err := d.Sign(rand.Reader, owner.Signer())
	if err != nil {
		s.t.Fatal(err)
	}
	return d, api.RevisionStatus{Revision: digest(s.t, d).String(), Sequence: seq, Descriptor: b}
}

func digest(t *testing.T, d *sealed.Descriptor) sealed.Digest {
	t.Helper()
	r, err := d.Revision()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// traffic gives old so many percent, and next the rest.
func (s *stage) traffic(seq uint64, percent uint64, old, next *sealed.Descriptor, edit ...func(*sealed.Traffic)) *sealed.Traffic {
	now := uint64(time.Now().Unix())
	st := &sealed.Traffic{Name: "echo", Namespace: "openfaas-fn", Sequence: seq, Issued: now, Expires: now + 3600, Shares: []sealed.Share{
		{Revision: digest(s.t, old), Sequence: old.Sequence, Percent: percent}, {Revision: digest(s.t, next), Sequence: next.Sequence, Percent: 100 - percent}}}
	for _, e := range edit {
		e(st)
	}
	return st
}

func (s *stage) sign(st *sealed.Traffic, owner *unseal.Identity) []byte {
	s.t.Helper()
	b, err := st.Sign(rand.Reader, owner.Signer())
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// offers has the gateway offer revisions, the current one first, and a statement.
func (s *stage) offers(traffic []byte, list ...api.RevisionStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offer = api.FunctionStatus{Name: fn, Sealed: true, Descriptor: list[0].Descriptor, Traffic: traffic}
	if len(list) > 1 {
		s.offer.Serving = list
	}
}

// call is one call, and what it was sealed for.
func (s *stage) call(c *client.Client, id string) ([]sealedCall, error) {
	s.mu.Lock()
	s.sealed = nil
	s.mu.Unlock()
	_, err := c.Invoke(s.t.Context(), fn, client.Request{CallID: id})
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sealed, err
}

func TestCallersDivideTheirCallsAsTheOwnerSays(t *testing.T) {
	s, c := newStage(t)
	old, oldStatus := s.revision(1, s.owner)
	next, nextStatus := s.revision(2, s.owner)
	st := s.traffic(10, 30, old, next)
	s.offers(s.sign(st, s.owner), nextStatus, oldStatus)
	seen := map[sealed.Digest]int{}
	for i := range 200 {
		id := fmt.Sprintf("call-%d", i)
		got, err := s.call(c, id)
		wantCode(t, err, api.CodeStaleRevision)
		if len(got) == 0 || got[0].id != id || got[0].revision != st.Choose(id).Revision {
			t.Fatalf("%s: %+v", id, got)
		}
		seen[got[0].revision]++
	}
	if len(seen) != 2 {
		t.Errorf("%v", seen)
	}
	// Without an id one is drawn, and told: a queue or a trace goes by the same one.
	seen = map[sealed.Digest]int{}
	for range 50 {
		got, _ := s.call(c, "")
		if len(got) == 0 || got[0].id == "" || got[0].revision != st.Choose(got[0].id).Revision {
			t.Fatalf("%+v", got)
		}
		seen[got[0].revision]++
	}
	if len(seen) != 2 {
		t.Errorf("%v", seen)
	}
	// The latest alone: whoever held the old statement takes the new one.
	st = s.traffic(11, 0, old, next, func(st *sealed.Traffic) { st.Shares = st.Shares[1:] })
	s.offers(s.sign(st, s.owner), nextStatus)
	s.call(c, "a")
	for i := range 20 {
		if got, _ := s.call(c, fmt.Sprint(i)); got[0].revision != digest(t, next) {
			t.Fatalf("%+v", got)
		}
	}
	// What was said before it is refused, however long it would count.
	s.offers(s.sign(s.traffic(10, 30, old, next), s.owner), nextStatus, oldStatus)
	if _, err := s.call(c, "a"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a statement of yesterday: %v", err)
	}
}

func TestACallerTakesAnOlderDescriptorForAStatementAlone(t *testing.T) {
	s, c := newStage(t)
	old, oldStatus := s.revision(1, s.owner)
	next, nextStatus := s.revision(2, s.owner)
	s.offers(nil, nextStatus)
	s.call(c, "a") // the newest was seen
	both := s.sign(s.traffic(10, 100, old, next), s.owner)
	third, thirdStatus := s.revision(20, s.owner)

	for name, offer := range map[string]func(){
		"no statement":             func() { s.offers(nil, oldStatus) },
		"it is the current one":    func() { s.offers(both, oldStatus, nextStatus) },
		"older than what was seen": func() { s.offers(nil, oldStatus, nextStatus) },
	} {
		offer()
		if got, err := s.call(c, "a"); api.CodeOf(err) != api.CodeConflict || len(got) != 1 || got[0].revision != digest(t, next) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	s.offers(both, nextStatus, oldStatus)
	if got, _ := s.call(c, "a"); len(got) != 2 || got[1].revision != digest(t, old) {
		t.Errorf("with a statement: %+v", got)
	}
	// Once a newer descriptor was seen, that ends the statement.
	s.offers(nil, thirdStatus)
	s.call(c, "a")
	s.offers(both, thirdStatus, nextStatus, oldStatus)
	if got, err := s.call(c, "a"); api.CodeOf(err) != api.CodeConflict || len(got) != 1 || got[0].revision != digest(t, third) {
		t.Errorf("after another deployment: %+v, %v", got, err)
	}
}

func TestCallersRefuseWrongStatements(t *testing.T) {
	stranger := identity(t)
	type made struct {
		traffic []byte
		list    []api.RevisionStatus
	}
	for name, c := range map[string]struct {
		make func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made
		code api.Code // of the refusal; stale_revision where the call went out, to the latest
	}{
		"by another key": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			return made{s.sign(s.traffic(10, 100, old, next), stranger), []api.RevisionStatus{n, o}}
		}, api.CodeForbidden},
		"of another function": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			return made{s.sign(s.traffic(10, 100, old, next, func(st *sealed.Traffic) { st.Name = "other" }), s.owner), []api.RevisionStatus{n, o}}
		}, api.CodeForbidden},
		"cut": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			b := s.sign(s.traffic(10, 100, old, next), s.owner)
			return made{b[:len(b)-1], []api.RevisionStatus{n, o}}
		}, api.CodeUnavailable},
		"a bit flipped": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			b := s.sign(s.traffic(10, 100, old, next), s.owner)
			b[len(b)-1] ^= 1
			return made{b, []api.RevisionStatus{n, o}}
		}, api.CodeForbidden},
		"a revision of another owner": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			_, o = s.revision(1, stranger)
			return made{s.sign(s.traffic(10, 100, old, next), s.owner), []api.RevisionStatus{n, o}}
		}, api.CodeForbidden},
		"another descriptor under its name": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			_, other := s.revision(1, s.owner, func(d *sealed.Descriptor) { d.Config.ExecMS = 77 })
			o.Descriptor = other.Descriptor
			return made{s.sign(s.traffic(10, 100, old, next), s.owner), []api.RevisionStatus{n, o}}
		}, api.CodeUnavailable},
		"an older descriptor of the revision": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			again := *old
			again.Sequence = 3
			return made{s.sign(s.traffic(10, 100, next, &again), s.owner), []api.RevisionStatus{n, o}}
		}, api.CodeStaleRevision},
		"without the descriptor": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			return made{s.sign(s.traffic(10, 100, old, next), s.owner), []api.RevisionStatus{n}}
		}, api.CodeUnavailable},
		"expired": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			return made{s.sign(s.traffic(10, 100, old, next, func(st *sealed.Traffic) { st.Issued -= 7200; st.Expires -= 7200 }), s.owner), []api.RevisionStatus{n, o}}
		}, api.CodeStaleRevision},
		"of the future": {func(s *stage, old, next *sealed.Descriptor, o, n api.RevisionStatus) made {
			return made{s.sign(s.traffic(10, 100, old, next, func(st *sealed.Traffic) { st.Issued += 60; st.Expires += 60 }), s.owner), []api.RevisionStatus{n, o}}
		}, api.CodeStaleRevision},
	} {
		t.Run(name, func(t *testing.T) {
			s, cl := newStage(t)
			old, o := s.revision(1, s.owner)
			next, n := s.revision(2, s.owner)
			m := c.make(s, old, next, o, n)
			s.offers(m.traffic, m.list...)
			got, err := s.call(cl, "a")
			wantCode(t, err, c.code)
			for _, g := range got {
				if g.revision != digest(t, next) {
					t.Errorf("a call went to %s", g.revision)
				}
			}
			if (len(got) > 0) != (c.code == api.CodeStaleRevision) {
				t.Errorf("%d calls", len(got))
			}
		})
	}
}

func TestAStatementThatEndsIsAskedAfterAtOnce(t *testing.T) {
	s, _ := newStage(t)
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	c := newCluster(t)
	c.Intercept = s.serve
	cl := c.client(identity(t), firstUse, func(cfg *client.Config) { cfg.Now = clock })
	old, oldStatus := s.revision(1, s.owner)
	next, nextStatus := s.revision(2, s.owner)
	s.offers(s.sign(s.traffic(10, 100, old, next, func(st *sealed.Traffic) { st.Expires = st.Issued + 30 }), s.owner), nextStatus, oldStatus)
	if got, _ := s.call(cl, "a"); len(got) == 0 || got[0].revision != digest(t, old) {
		t.Fatalf("%+v", got)
	}
	mu.Lock()
	now = now.Add(31 * time.Second)
	mu.Unlock()
	before := s.fetch
	if got, _ := s.call(cl, "a"); len(got) == 0 || got[0].revision != digest(t, next) || s.fetch == before {
		t.Errorf("%+v, fetched %d times", got, s.fetch-before)
	}
}

func TestACallerHearsOfAStatementWithAReply(t *testing.T) {
	c, _, _ := deployed(t)
	var mu sync.Mutex
	told, fetched, offset := "", 0, time.Duration(0)
	set := func(s string, later time.Duration) { mu.Lock(); defer mu.Unlock(); told, offset = s, offset+later }
	now := func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(offset) }
	c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodGet {
			fetched++
		} else if told != "" {
			w.Header().Set(api.HeaderStated, told)
		}
		return false
	}
	cl := c.client(identity(t), firstUse, func(cfg *client.Config) { cfg.Now = now })
	call := func() int {
		t.Helper()
		res, err := cl.Invoke(t.Context(), fn, client.Request{})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		mu.Lock()
		defer mu.Unlock()
		return fetched
	}
	if n := call(); n != 1 {
		t.Fatalf("fetched %d times", n)
	}
	set("10", 0)
	call()
	if n := call(); n != 1 {
		t.Errorf("fetched %d times within a second", n)
	}
	set("10", 2*time.Second)
	for range 3 { // what the gateway told of is not there: it is asked once
		if n := call(); n != 2 {
			t.Errorf("fetched %d times", n)
		}
	}
	set("11", 2*time.Second)
	call() // tells
	if n := call(); n != 3 {
		t.Errorf("fetched %d times after it told of another", n)
	}
	for _, nonsense := range []string{"", "-1", "99999999999999999999", "x"} {
		set(nonsense, 2*time.Second)
		call()
		if n := call(); n != 3 {
			t.Errorf("%q: fetched %d times", nonsense, n)
		}
	}
}

// released asks the cluster's broker for the keys of a revision.
func (c *cluster) released(revision string) error {
	c.t.Helper()
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	pub := k.PublicKey()
	st, err := cbor.Marshal(api.Statement{Ephemeral: pub[:], Nonce: make([]byte, 16), IssuedAtMs: time.Now().UnixMilli()})
	if err != nil {
		c.t.Fatal(err)
	}
	_, err = c.Broker.Release(c.t.Context(), "n1", api.ReleaseRequest{Function: string(fn), Revision: revision, Statement: st, Evidence: []api.Evidence{{Type: "node-key"}}})
	return err
}

// managed has the cluster keep what was deployed, and answer as a coordinator does
// about revisions and statements.
type managed struct {
	*cluster
	past    []api.RevisionStatus // the latest first
	traffic []byte
}

func manage(c *cluster) *managed {
	m := &managed{cluster: c}
	c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/revisions"):
			json.NewEncoder(w).Encode(m.past)
		case strings.HasSuffix(r.URL.Path, "/traffic"):
			var t api.Traffic
			b, err := io.ReadAll(r.Body)
			if err == nil {
				err = json.Unmarshal(b, &t)
			}
			if err != nil {
				c.t.Error(err)
			}
			m.traffic = t.Statement
			w.WriteHeader(204)
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, string(fn)) && len(m.past) > 0:
			json.NewEncoder(w).Encode(api.FunctionStatus{Name: fn, Sealed: true, Descriptor: m.past[0].Descriptor, Traffic: m.traffic, Serving: m.past})
		default:
			return false
		}
		return true
	}
	return m
}

// deployed takes what was put last as the current revision, without a statement.
func (m *managed) deployed() string {
	rev := m.Revision.String()
	s := api.RevisionStatus{Revision: rev, Sequence: m.Descriptor.Sequence, State: api.RevisionCurrent, Descriptor: m.Record.Descriptor, ImageRef: m.Record.ImageRef, BundleRef: m.Record.BundleRef}
	m.past = append([]api.RevisionStatus{s}, m.past...)
	m.traffic = nil
	return rev
}

func TestAnOwnerDividesCallsAndTheBrokerGoesByIt(t *testing.T) {
	c := newCluster(t)
	m := manage(c)
	id, ring := identity(t), newRing(t)
	owner := c.client(id, firstUse)
	deploy := func(exec time.Duration, edit ...func(*client.Deployment)) string {
		t.Helper()
		d := c.deployment(ring, append(edit, func(d *client.Deployment) { d.Exec = exec })...)
		if _, err := owner.Deploy(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		return m.deployed()
	}
	old := deploy(time.Second)
	// The next one has another key, and one more: the old one's is not listed any more.
	rotate := func(d *client.Deployment) { d.Rotate = true }
	middle := deploy(2*time.Second, rotate)
	signed, err := sealed.ParseTraffic(m.Record.Traffic)
	if err != nil {
		t.Fatal(err)
	}
	st, err := signed.Verify(id.SigningKey().Fingerprint())
	if err != nil || len(st.Shares) != 2 || st.Shares[0].Revision.String() != old || st.Shares[0].Percent != 100 || st.Latest().Revision.String() != middle ||
		st.Expires-st.Issued != 20*60 { // it was issued as if by a clock that is behind
		t.Fatalf("%+v, %v", st, err)
	}
	wantCode(t, c.released(old), "") // while the new one is on its way
	wantCode(t, owner.EndRollout(t.Context(), fn, ring), "")
	wantCode(t, c.released(old), api.CodeStaleRevision)
	wantCode(t, c.released(middle), "")
	last := deploy(3*time.Second, rotate)
	wantCode(t, owner.EndRollout(t.Context(), fn, ring), "")

	d, err := owner.Divide(t.Context(), fn, map[string]int{old[:8]: 20, last: 80}, time.Hour, ring)
	if err != nil || d.Percent[old] != 20 || d.Percent[last] != 80 || d.Anew != nil {
		t.Fatalf("%+v, %v", d, err)
	}
	wantCode(t, c.released(old), "")
	wantCode(t, c.released(middle), api.CodeStaleRevision)
	// The latest is named though it has no share.
	if _, err = owner.Divide(t.Context(), fn, map[string]int{old: 50, middle: 50}, time.Hour, ring); err != nil {
		t.Fatal(err)
	}
	for _, rev := range []string{old, middle, last} {
		wantCode(t, c.released(rev), "")
	}
	// The same content signed anew stays divided, and another ends it.
	m.past[1].State, m.past[2].State = api.RevisionBeside, api.RevisionBeside
	again := c.deployment(ring, func(d *client.Deployment) { d.Exec = 3 * time.Second })
	if _, err := owner.Deploy(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.released(old), "")
	wantCode(t, c.released(middle), "")
	m.past = m.past[1:]
	m.deployed()
	if _, err = owner.Divide(t.Context(), fn, map[string]int{last: 100}, time.Hour, ring); err != nil {
		t.Fatal(err)
	}
	for _, rev := range []string{old, middle} {
		wantCode(t, c.released(rev), api.CodeStaleRevision)
	}

	for name, c := range map[string]struct {
		percent map[string]int
		life    time.Duration
		field   string
	}{
		"not all":     {map[string]int{last: 50}, time.Hour, "percent"},
		"too much":    {map[string]int{last: 101}, time.Hour, "percent." + last},
		"unknown":     {map[string]int{"zz": 100}, time.Hour, "percent.zz"},
		"for nothing": {map[string]int{"": 100}, time.Hour, "percent."},
		"for ever":    {map[string]int{last: 100}, 169 * time.Hour, "--for"},
		"no time":     {map[string]int{last: 100}, 0, "--for"},
	} {
		_, err := owner.Divide(t.Context(), fn, c.percent, c.life, ring)
		if e, ok := err.(*api.Error); !ok || e.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Whoever has not all keys cannot.
	_, err = owner.Divide(t.Context(), fn, map[string]int{old: 50, last: 50}, time.Hour, newRing(t))
	wantCode(t, err, api.CodeConflict)
	_, err = c.client(identity(t), firstUse).Divide(t.Context(), fn, map[string]int{old: 50, last: 50}, time.Hour, ring)
	wantCode(t, err, api.CodeForbidden)
}
