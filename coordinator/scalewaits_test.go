package coordinator

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/store"
)

// otherCoordinator is one more coordinator of a world's, as the controller meets it.
type otherCoordinator struct {
	mu     sync.Mutex
	reply  []byte
	stall  chan struct{} // while not nil, answers come when it closes
	broken bool          // it hangs up
	older  bool          // it knows of none of this
	told   string        // of the demand for a function; empty where it does not know of that
	asked  int
	serve  http.HandlerFunc // instead of all this
}

// addCoordinator puts another coordinator into the mesh.
func (w *world) addCoordinator(id string) *otherCoordinator {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	o := &otherCoordinator{reply: []byte("[]")}
	server := &http.Server{Handler: o}
	go server.Serve(ln)
	w.t.Cleanup(func() { o.set(func() { o.stall, o.broken = nil, false }); server.Close() })
	w.joins(id, ln.Addr().String())
	return o
}

// joins publishes one more coordinator.
func (w *world) joins(id, addr string) {
	w.mesh.mu.Lock()
	defer w.mesh.mu.Unlock()
	next := *w.mesh.view
	next.Version++
	next.Nodes = append(next.Nodes[:len(next.Nodes):len(next.Nodes)], api.NodeView{
		Meta: api.NodeMeta{ID: id, Addr: addr, Roles: []string{api.RoleCoordinator}}})
	w.mesh.view = &next
}

func (o *otherCoordinator) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	reply, stall, broken, older, serve := o.reply, o.stall, o.broken, o.older, o.serve
	if strings.HasPrefix(r.URL.Path, api.GatewayPathDemand) {
		reply, older = []byte(o.told), older || o.told == ""
	} else {
		older = older || r.URL.Path != api.GatewayPathWaits
	}
	o.asked++
	o.mu.Unlock()
	switch {
	case serve != nil:
		serve(rw, r)
		return
	case broken || r.Method != http.MethodGet:
		panic(http.ErrAbortHandler)
	case older:
		refuses(api.CodeNotFound)(rw, r)
		return
	case stall != nil:
		select {
		case <-stall:
		case <-r.Context().Done():
		}
	}
	rw.Write(reply)
}

func (o *otherCoordinator) set(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
}

// says has it tell what waits from now on.
func (o *otherCoordinator) says(list ...api.Waits) {
	b, err := json.Marshal(list)
	if err != nil {
		panic(err)
	}
	o.set(func() { o.reply = b })
}

// tens is a policy of ten invocations for each replica, and little patience.
func tens() api.Scale {
	p := api.DefaultScale()
	p.Target, p.Proportion, p.Min, p.Max, p.Zero, p.DownWindow = 10, 1, 1, 8, false, 600
	return p
}

func TestCallsThatWaitAtOtherCoordinatorsCountUntilTheseDie(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	second, third := w.addCoordinator("coordinator-2"), w.addCoordinator("coordinator-3")
	rev := w.fn.Revision
	is := func(n int) func() bool { return func() bool { got, _ := f.total(rev); return got == n } }
	w.policy(tens())
	w.eventually("one, with nobody waiting", is(1))
	second.says(api.Waits{Revision: rev, Calls: 25}, api.Waits{Revision: "of another function", Calls: 500})
	third.says(api.Waits{Revision: rev, Calls: 18})
	w.eventually("as many as those that wait at both need", is(5))
	f.set(func() { f.load[rev] = 20 })
	w.eventually("and those that are under way", is(7))
	f.set(func() { f.load[rev] = 0 })
	second.set(func() { second.broken = true })
	w.eventually("those of the one that died count no more, those of the other do", is(2))
	second.set(func() { second.broken = false })
	w.eventually("it is back", is(5))
	third.says()
	w.eventually("nobody waits any more at the third", is(3))
}

func TestACoordinatorThatDoesNotAnswerHoldsUpNothing(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	stuck, well := w.addCoordinator("coordinator-2"), w.addCoordinator("coordinator-3")
	rev := w.fn.Revision
	stuck.says(api.Waits{Revision: rev, Calls: 40})
	w.policy(tens())
	w.eventually("as many as those that wait need", func() bool { n, _ := f.total(rev); return n == 4 })
	stall := make(chan struct{})
	defer close(stall)
	stuck.set(func() { stuck.stall = stall })
	w.eventually("what it said lapses", func() bool { n, _ := f.total(rev); return n == 1 })
	for calls := 20; calls <= 70; calls += 10 {
		well.says(api.Waits{Revision: rev, Calls: calls})
		w.eventually("another's word counts", func() bool { n, _ := f.total(rev); return n == calls/10 })
	}
}

// TestNobodyWaitsForWhoDoesNotAnswer asks with one that is stuck and one that is well.
func TestNobodyWaitsForWhoDoesNotAnswer(t *testing.T) {
	w := newWorld(t, 0) // nothing is controlled: nobody else asks
	stuck, well := w.addCoordinator("coordinator-2"), w.addCoordinator("coordinator-3")
	well.says(api.Waits{Revision: "r", Calls: 3})
	stuck.says(api.Waits{Revision: "r", Calls: 4})
	e := newElsewhere(w.c)
	defer e.end()
	ask := func() (calls int, asking, silent bool) {
		e.ask(t.Context())
		all := map[string]int{}
		e.addTo(all, time.Now())
		e.mu.Lock()
		defer e.mu.Unlock()
		word := e.said["coordinator-2"]
		return all["r"], word.asking, word.silent
	}
	if calls, asking, _ := ask(); calls != 7 || asking {
		t.Fatalf("%d calls are told of, one still asked: %v", calls, asking)
	}
	stall := make(chan struct{})
	defer close(stall)
	stuck.set(func() { stuck.stall = stall })
	if calls, asking, _ := ask(); calls != 7 || !asking {
		t.Errorf("%d calls by its last word, and it is still asked: %v", calls, asking)
	}
	w.eventually("it is held for silent, and its word has lapsed", func() bool { calls, _, silent := ask(); return silent && calls == 3 })
	asked := func() (n int) { stuck.set(func() { n = stuck.asked }); return n }
	w.eventually("it is asked again", func() bool { _, asking, _ := ask(); return asking })
	before := asked()
	for range 10 {
		if calls, asking, _ := ask(); calls != 3 && asking {
			t.Errorf("%d calls while one is stuck", calls)
		}
	}
	if now := asked(); now > before+5 { // a question has a second, and there is one at a time
		t.Errorf("ten looks had it asked %d times", now-before)
	}
	stuck.set(func() { stuck.stall = nil })
	w.eventually("it has answered again", func() bool { calls, _, silent := ask(); return calls == 7 && !silent })
}

func TestWordsThatMakeNoSenseCountForNothing(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	o := w.addCoordinator("coordinator-2")
	rev := w.fn.Revision
	many := make([]api.Waits, api.MaxWaits+1)
	for i := range many {
		many[i] = api.Waits{Revision: fmt.Sprintf("%064x", i), Calls: 1}
	}
	for name, list := range map[string][]api.Waits{
		"none": {{Revision: rev}}, "less than none": {{Revision: rev, Calls: -5}}, "too many": {{Revision: rev, Calls: 1 << 40}},
		"nobody's": {{Calls: 5}}, "twice": {{Revision: rev, Calls: 5}, {Revision: rev, Calls: 6}}, "too long": many,
	} {
		b, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseWaits(b); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.policy(tens())
	o.says(api.Waits{Revision: rev, Calls: 30})
	w.eventually("as many as those that wait need", func() bool { n, _ := f.total(rev); return n == 3 })
	o.set(func() { o.reply = []byte(`[{"revision":"` + rev + `","calls":-70}]`) })
	w.eventually("what made sense lapses", func() bool { n, _ := f.total(rev); return n == 1 })
}

func TestWhatIsToldIsBoundedMostCallsFirst(t *testing.T) {
	calls := map[string]int{"": 1, "big": 9}
	delete(calls, "")
	for i := range api.MaxWaits + 100 {
		calls[fmt.Sprintf("r%05d", i)] = 1 + i%3
	}
	list := listWaits(calls)
	if len(list) != api.MaxWaits || list[0] != (api.Waits{Revision: "big", Calls: 9}) || list[1].Calls != 3 || list[len(list)-1].Calls == 0 {
		t.Fatalf("%d are told, %+v first", len(list), list[0])
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseWaits(b); err != nil || len(got) != api.MaxWaits || got["big"] != 9 {
		t.Errorf("read again: %d, %v", len(got), err)
	}
}

// waits asks what a coordinator tells others.
func (w *world) waits(t *testing.T) map[string]int {
	t.Helper()
	var ctx fasthttp.RequestCtx
	w.c.ServeWaits(&ctx)
	calls, err := parseWaits(ctx.Response.Body())
	if err != nil {
		t.Fatalf("%v: %s", err, ctx.Response.Body())
	}
	return calls
}

// TestACoordinatorTellsWhatWaitsInIt has calls wait in one coordinator for another,
// which controls, to have replicas made for.
func TestACoordinatorTellsWhatWaitsInIt(t *testing.T) {
	var open *counted
	full := newWorld(t, 1, withOpener(t, &open), func(w *world) { w.cfg.QueueTimeout = 20 * time.Second })
	node := full.nodes["node-1"]
	serve := *node.invoke.Load()
	node.on(&node.invoke, refuses(api.CodeNoRoom))
	full.bounded(manifest.Bounds{Max: manifest.Max{MemoryBytes: 256 << 20}, Overridable: []manifest.Field{manifest.FieldMemory}})
	rev := full.rev.String()
	var wg sync.WaitGroup
	for range 30 {
		msg := full.message(10, time.Minute)
		wg.Go(func() {
			if a := full.send(msg); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	// One with needs of its own runs in no replica.
	header, _ := full.wish(full.owner, func(m *manifest.Manifest) { m.Needs.MemoryBytes = 100 << 20 })
	wg.Go(func() {
		if a := full.task(header); a.status != 200 {
			t.Errorf("the task: %d %s", a.status, a.body)
		}
	})
	full.eventually("all wait", func() bool { return len(full.c.queue.snapshot()) == 31 })
	full.eventually("thirty of them for a replica", func() bool { got := full.waits(t); return len(got) == 1 && got[rev] == 30 })

	f, with := replicated(10)
	w := newWorld(t, 3, with)
	w.state.mu.Lock()
	fn := *w.state.functions["f.ns"]
	fn.Revision, fn.Descriptor, fn.Owner, fn.Bounds = rev, full.fn.Descriptor, full.fn.Owner, nil
	w.state.functions["f.ns"] = &fn
	w.state.mu.Unlock()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &fasthttp.Server{Handler: full.c.ServeWaits, CloseOnShutdown: true}
	go server.Serve(ln)
	t.Cleanup(func() { _ = server.Shutdown() })
	w.joins("coordinator-2", ln.Addr().String())
	w.policy(tens())
	w.eventually("three replicas", func() bool { n, _ := f.total(rev); return n == 3 })
	node.on(&node.invoke, serve)
	wg.Wait()
	if got := full.waits(t); len(got) != 0 {
		t.Errorf("nobody waits, and it tells of %v", got)
	}
	w.eventually("one replica", func() bool { n, _ := f.total(rev); return n == 1 })
}

// TestACallThatWaitsCountsForTheRevisionThatWillServeIt changes a plain function
// while its callers wait.
func TestACallThatWaitsCountsForTheRevisionThatWillServeIt(t *testing.T) {
	w := newPlainWorld(t, 1, refuses(api.CodeNoRoom))
	w.c.cfg.QueueTimeout = 10 * time.Second
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if resp, body := w.open(t, http.MethodPost, "/function/p", "x"); resp.StatusCode != 200 {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
		})
	}
	var name api.FunctionName
	for n, f := range w.state.Snapshot().Functions {
		if f.Plain != nil {
			name = n
		}
	}
	before := w.state.Get(name).Revision
	w.eventually("three wait for it", func() bool { return w.waits(t)[before] == 3 })
	const after = "00000000000000000000000000000000000000000000000000000000000000aa"
	if err := w.c.change(t.Context(), name, func(f *store.Function) error { f.Revision, f.Sequence = after, f.Sequence+1; return nil }); err != nil {
		t.Fatal(err)
	}
	w.eventually("three wait for the new one", func() bool { got := w.waits(t); return len(got) == 1 && got[after] == 3 })
	w.nodes["node-1"].on(&w.nodes["node-1"].other, func(rw http.ResponseWriter, _ *http.Request) { plainReply(rw, 200, "") })
	wg.Wait()
}
