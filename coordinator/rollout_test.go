package coordinator

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// update deploys another revision of f.ns and returns its digest. Messages are
// sealed for the old one still.
func (w *world) update(seq uint64, exec uint64) string {
	w.t.Helper()
	b, rev := w.describe(w.owner, seq, func(d *sealed.Descriptor) { d.Config.ExecMS = exec })
	if a := w.put(w.owner, api.Revision{Descriptor: b, ImageRef: "img"}); a.status != 200 {
		w.t.Fatalf("%d %s", a.status, a.body)
	}
	return rev.String()
}

func (w *world) described() (st api.FunctionStatus) {
	w.t.Helper()
	if err := json.Unmarshal(w.do("GET", "/v1/functions/f.ns?brief=1", "", nil).body, &st); err != nil {
		w.t.Fatal(err)
	}
	return st
}

func TestANewRevisionIsReadyBeforeTheOldOneEnds(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	old := w.fn.Revision
	f.set(func() { f.have["node-1"][old], f.have["node-2"][old] = 1, 1 })
	f.set(func() { f.room = map[string]int{} }) // none has room yet
	next := w.update(2, 2000)
	if st := w.described(); st.Revision != old || st.Rollout == nil || st.Rollout.State != api.RolloutRolling || len(st.Serving) != 2 {
		t.Fatalf("while the new one starts: %+v, %+v", st.Rollout, st.Serving)
	}
	if a := w.send(w.message(10, time.Minute)); a.status != 200 {
		t.Errorf("sealed for the old one: %d %s", a.status, a.body)
	}
	f.set(func() { f.room = map[string]int{"node-1": 9, "node-2": 9, "node-3": 9} })
	w.eventually("the new one serves", func() bool { return w.described().Revision == next })
	if n, _ := f.total(next); n < 1 {
		t.Errorf("it serves with %d replicas", n)
	}
	if a := w.send(w.message(10, time.Minute)); a.status != 200 {
		t.Errorf("sealed for the old one while it drains: %d %s", a.status, a.body)
	}
	for deadline := time.Now().Add(drainFor + 30*time.Second); len(w.described().Serving) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the old one drains for ever: %+v", w.described())
		}
	}
	if a := w.send(w.message(10, time.Minute)); a.code != api.CodeStaleRevision {
		t.Errorf("sealed for what does not serve any more: %d %s", a.status, a.body)
	}
	retired := int64(0)
	for _, n := range w.nodes {
		retired += n.retired.Load()
	}
	if retired == 0 {
		t.Error("no node was told to let go of the old one")
	}
}

func TestARevisionThatDoesNotStartIsTakenBack(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	old := w.fn.Revision
	b, rev := w.describe(w.owner, 2, func(d *sealed.Descriptor) { d.Config.ExecMS = 2000 })
	f.set(func() { f.have["node-1"][old], f.fails[rev.String()] = 1, "it ended with code 1" })
	if a := w.put(w.owner, api.Revision{Descriptor: b, ImageRef: "img"}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventually("it was taken back", func() bool { return w.described().Rollout.State == api.RolloutFailed })
	st := w.described()
	if st.Revision != old || st.Rollout.Code != api.CodeStartFailed || st.Rollout.Reason == "" || len(st.Serving) > 0 {
		t.Errorf("%+v, %+v", st.Rollout, st)
	}
	if a := w.send(w.message(10, time.Minute)); a.status != 200 {
		t.Errorf("the old one: %d %s", a.status, a.body)
	}
	if a := w.put(w.owner, api.Revision{Descriptor: b, ImageRef: "img"}); a.code != api.CodeConflict {
		t.Errorf("the same sequence again: %d %s", a.status, a.body)
	}
}

func TestTheCurrentRevisionSignedAnewIsWhatItWas(t *testing.T) {
	_, with := replicated(10)
	w := newWorld(t, 1, with)
	p := api.Pinned(3)
	b, rev := w.describe(w.owner, 2)
	notes := map[string]string{"schedule": "@daily"}
	if a := w.put(w.owner, api.Revision{Descriptor: b, ImageRef: "img", Scale: &p, Labels: notes, Annotations: notes}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	again, _ := w.describe(w.owner, 3)
	if a := w.put(w.owner, api.Revision{Descriptor: again, ImageRef: "img", Restore: true}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	st := w.described()
	if st.Revision != rev.String() || st.Sequence != 3 || st.Scale == nil || *st.Scale != p || st.Labels["schedule"] == "" || st.Annotations["schedule"] == "" {
		t.Errorf("%+v", st)
	}
}

func TestARevisionNobodyCallsIsReplacedAtOnce(t *testing.T) {
	_, with := replicated(10)
	w := newWorld(t, 1, with)
	next := w.update(2, 2000)
	if st := w.described(); st.Revision != next || st.Rollout.State != api.RolloutDone {
		t.Errorf("%+v", st)
	}
}

func TestWhereBothDoNotFitTheNewOneTakesThePlaceOfTheOld(t *testing.T) {
	f, with := replicated(1)
	w := newWorld(t, 1, with)
	old := w.fn.Revision
	f.set(func() { f.have["node-1"][old] = 1 })
	next := w.update(2, 2000)
	w.eventually("the new one is current", func() bool { return w.described().Revision == next })
}

// KeepRevision, Revisions and ForgetRevisions implement History.
func (m *memory) KeepRevision(_ context.Context, f store.Function) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.past == nil {
		m.past = map[api.FunctionName][]*store.Function{}
	}
	m.past[f.Name] = append([]*store.Function{f.Alone()}, m.past[f.Name]...)
	return nil
}

func (m *memory) Revisions(_ context.Context, name api.FunctionName) ([]*store.Function, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.past[name], nil
}

func (m *memory) ForgetRevisions(_ context.Context, name api.FunctionName) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.past, name)
	return nil
}

func TestRollbackOfAPlainFunctionCountsUp(t *testing.T) {
	w := newWorld(t, 1)
	put := func(name string, seq uint64, rev, color string) {
		f := &store.Function{Name: api.FunctionName(name), Revision: rev, Sequence: seq, ImageRef: "img", ImageDigest: imageDigest,
			Plain: &api.Plain{Image: "img", Env: map[string]string{"COLOR": color}}}
		old := w.state.Get("p.ns")
		stored := w.c.follow(old, *f)
		version := int64(0)
		if old != nil {
			version = old.Version
		}
		if _, err := w.state.PutFunction(t.Context(), stored, version); err != nil {
			t.Fatal(err)
		}
		w.c.followed(old, &stored)
	}
	put("p.ns", 1, "aa", "blue")
	put("p.ns", 2, "bb", "green")
	if a := w.signed(w.owner, "POST", "/v1/functions/p.ns/rollback", []byte(`{}`)); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	f := w.state.Get("p.ns")
	if f.Revision != "aa" || f.Sequence <= 2 || f.Plain.Env["COLOR"] != "blue" {
		t.Errorf("%+v", f)
	}
	var list []api.RevisionStatus
	if err := json.Unmarshal(w.do("GET", "/v1/functions/p.ns/revisions", "", nil).body, &list); err != nil || len(list) != 2 || list[0].Revision != "aa" || list[1].State != api.RevisionPast {
		t.Errorf("%+v, %v", list, err)
	}
	if a := w.signed(w.owner, "POST", "/v1/functions/p.ns/rollback", []byte(`{"revision":"cc"}`)); a.code != api.CodeNotFound {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.signed(w.owner, "POST", "/v1/functions/f.ns/rollback", []byte(`{}`)); a.code != api.CodeConflict {
		t.Errorf("a sealed function: %d %s", a.status, a.body)
	}
}
