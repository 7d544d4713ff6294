package coordinator

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// fakeReplicas is what the nodes of a world have, which they keep as ordered.
type fakeReplicas struct {
	mu    sync.Mutex
	room  map[string]int              // node -> replicas it has room for
	have  map[string]map[string]int   // node -> revision -> ready
	fails map[string]string           // revision -> why none of it starts
	bad   map[string]int              // revision -> starts that failed
	load  map[string]int              // revision -> invocations under way, on the first node
	dead  map[string]bool             // nodes that do not answer
	said  map[string]api.ReplicaOrder // by node and revision
}

// replicated gives a world's nodes replicas.
func replicated(room int) (*fakeReplicas, func(*world)) {
	f := &fakeReplicas{room: map[string]int{}, have: map[string]map[string]int{}, fails: map[string]string{}, bad: map[string]int{},
		load: map[string]int{}, dead: map[string]bool{}, said: map[string]api.ReplicaOrder{}}
	return f, func(w *world) {
		for id, n := range w.nodes {
			f.room[id], f.have[id] = room, map[string]int{}
			n.on(&n.other, func(rw http.ResponseWriter, r *http.Request) { f.serve(id, rw, r) })
		}
	}
}

func (f *fakeReplicas) serve(id string, rw http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead[id] {
		rw.WriteHeader(503)
		return
	}
	if r.Method == http.MethodGet {
		list := []api.ReplicaStatus{}
		for rev := range f.load {
			f.have[id][rev] += 0
		}
		for rev := range f.fails {
			f.have[id][rev] += 0
		}
		for rev, n := range f.have[id] {
			s := api.ReplicaStatus{Function: "f.ns", Revision: rev, Ready: n, Slots: 64, Failed: f.bad[rev], Code: api.CodeStartFailed, Reason: f.fails[rev]}
			if id == "node-1" {
				s.InFlight = f.load[rev]
			}
			list = append(list, s)
		}
		json.NewEncoder(rw).Encode(list)
		return
	}
	var o api.ReplicaOrder
	json.NewDecoder(r.Body).Decode(&o)
	rev := r.URL.Query().Get("rev")
	f.said[id+rev] = o
	all := 0
	for _, n := range f.have[id] {
		all += n
	}
	reply := api.ReplicaReply{Held: min(o.Hold, f.have[id][rev])}
	for reply.Held < o.Hold {
		if f.fails[rev] != "" {
			f.bad[rev]++
			f.have[id][rev] += 0
			reply.Held = o.Hold
			break
		}
		if all >= f.room[id] {
			reply.Refused, reply.Reason = api.CodeNoRoom, "not enough memory"
			break
		}
		all++
		f.have[id][rev]++
		reply.Held++
	}
	if extra := f.have[id][rev] - o.Hold; extra > 0 {
		f.have[id][rev] -= min(extra, o.Stop)
	}
	json.NewEncoder(rw).Encode(reply)
}

// total is how many replicas of a revision there are, and on each node.
func (f *fakeReplicas) total(rev string) (n int, each []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range []string{"node-1", "node-2", "node-3"} {
		n += f.have[id][rev]
		each = append(each, f.have[id][rev])
	}
	return n, each
}

func (f *fakeReplicas) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// policy gives f.ns one.
func (w *world) policy(p api.Scale) {
	w.t.Helper()
	if err := w.c.change(w.t.Context(), "f.ns", func(f *store.Function) error { f.Scale = &p; return nil }); err != nil {
		w.t.Fatal(err)
	}
}

func TestReplicasFollowTheLoadAndArePutApart(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	p := api.DefaultScale()
	p.Target, p.Proportion, p.Min, p.Max, p.Zero, p.DownWindow = 10, 1, 2, 8, false, 600
	w.policy(p)
	rev := w.fn.Revision
	is := func(n int) func() bool { return func() bool { got, _ := f.total(rev); return got == n } }
	w.eventually("the minimum is there before anybody calls", is(2))
	f.set(func() { f.load[rev] = 55 })
	w.eventually("as many as the load needs", is(6))
	if _, each := f.total(rev); each[0] != 2 || each[1] != 2 || each[2] != 2 {
		t.Errorf("not spread: %v", each)
	}
	f.set(func() { f.load[rev] = 5000 })
	w.eventually("the maximum", is(8))
	f.set(func() { f.have["node-2"][rev]-- })
	w.eventually("one that ended is replaced", is(8))
	f.set(func() { f.load[rev] = 0 })
	w.eventually("down to the minimum, and no further", is(2))
	w.eventually("who describes it is told the truth", func() bool {
		var st api.FunctionStatus
		err := json.Unmarshal(w.do("GET", "/v1/functions/f.ns", "", nil).body, &st)
		return err == nil && st.Scale != nil && st.Available == 2 && st.Replicas == 2
	})
}

func TestReplicasOfANodeThatIsGoneAreMadeElsewhere(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	w.policy(api.Pinned(3))
	rev := w.fn.Revision
	w.eventually("one on each node", func() bool { n, each := f.total(rev); return n == 3 && each[2] == 1 })
	f.set(func() { f.dead["node-3"], f.have["node-3"] = true, nil })
	w.mesh.mu.Lock()
	next := *w.mesh.view
	next.Version, next.Nodes = next.Version+1, next.Nodes[:2]
	w.mesh.view = &next
	w.mesh.mu.Unlock()
	w.eventually("three again", func() bool { n, _ := f.total(rev); return n == 3 })
}

func TestWhatIsRefusedGoesToTheNextNode(t *testing.T) {
	f, with := replicated(1)
	w := newWorld(t, 3, with)
	f.set(func() { f.room["node-1"] = 0 })
	w.policy(api.Pinned(2))
	w.eventually("both are where there is room", func() bool { n, each := f.total(w.fn.Revision); return n == 2 && each[0] == 0 })
}

func TestANumberSetByHandIsKeptOrScalesToZero(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	rev := w.fn.Revision
	for _, n := range []int{4, 1, 0} {
		body, _ := json.Marshal(api.SetReplicas{Replicas: n})
		if a := w.signed(w.owner, "POST", "/v1/functions/f.ns/scale", body); a.status != 204 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		w.eventually("as many as were set", func() bool { got, _ := f.total(rev); return got == n })
	}
	if a := w.do("POST", "/v1/functions/f.ns/scale", "", []byte(`{"replicas":2}`)); a.status != 401 {
		t.Errorf("unsigned: %d", a.status)
	}
	if a := w.signed(w.owner, "POST", "/v1/functions/f.ns/scale", []byte(`{"replicas":-2}`)); a.status != 400 || !strings.Contains(string(a.body), "replicas") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestInvocationsStartNoMoreThanTheMaximum sends a burst to a function that has no
// replica: of all attempts only as many as it may have replicas may start one.
func TestInvocationsStartNoMoreThanTheMaximum(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	p := api.DefaultScale()
	p.Max = 2
	w.policy(p)
	rev := w.fn.Revision
	var mu sync.Mutex
	growing := 0
	for id, n := range w.nodes {
		n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get(api.HeaderExisting) == "" {
				mu.Lock()
				growing++
				mu.Unlock()
				f.set(func() { f.have[id][rev]++ }) // as the next census is to see
			}
			time.Sleep(20 * time.Millisecond)
			rw.Header().Set("Content-Type", api.ContentTypeSealed)
			rw.Header().Set(api.HeaderStart, "cold")
			rw.WriteHeader(200)
		})
	}
	f.set(func() { f.room = map[string]int{} }) // the controller makes none
	var wg sync.WaitGroup
	for range 20 {
		msg := w.message(10, time.Minute)
		wg.Go(func() {
			if a := w.send(msg); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if growing < 1 || growing > 2 {
		t.Errorf("%d invocations might have started a replica, 2 at most may", growing)
	}
}

// TestCallsUnderWayDoNotKeepReplicasFromBeingMade: those that found a slot hold no
// permit, however long they take.
func TestCallsUnderWayDoNotKeepReplicasFromBeingMade(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	p := api.DefaultScale()
	p.Target, p.Proportion, p.Max = 2, 1, 4
	rev := w.fn.Revision
	f.set(func() { f.have["node-1"][rev], f.load[rev] = 1, 6 })
	w.mesh.set("node-1", func(n *api.NodeView) { n.Load.Warm = map[string]int{api.RevisionKey(rev): 60} })
	end := make(chan struct{})
	for _, n := range w.nodes {
		n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
			<-end
			rw.Header().Set("Content-Type", api.ContentTypeSealed)
			rw.Header().Set(api.HeaderStart, "warm")
		})
	}
	w.policy(p)
	var wg sync.WaitGroup
	for range 6 {
		msg := w.message(10, time.Minute)
		wg.Go(func() { w.send(msg) })
	}
	w.eventually("as many as the load needs", func() bool { n, _ := f.total(rev); return n == 3 })
	close(end)
	wg.Wait()
}
