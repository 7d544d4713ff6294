package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// never leads.
func never(ctx context.Context, _ string, _ func(context.Context) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// demand is what is described of f.ns.
func (w *world) demand() *api.Demand {
	w.t.Helper()
	var st api.FunctionStatus
	a := w.do("GET", "/v1/functions/f.ns", "", nil)
	if err := json.Unmarshal(a.body, &st); err != nil || st.Demand == nil {
		w.t.Fatalf("a description without demand: %d %s, %v", a.status, a.body, err)
	}
	return st.Demand
}

// tells has a coordinator answer others, and gives its address.
func (w *world) tells(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &fasthttp.Server{CloseOnShutdown: true, Handler: func(ctx *fasthttp.RequestCtx) {
		if strings.HasPrefix(string(ctx.Path()), api.GatewayPathDemand) {
			w.c.ServeDemand(ctx)
			return
		}
		w.c.ServeWaits(ctx)
	}}
	go server.Serve(ln)
	t.Cleanup(func() { _ = server.Shutdown() })
	return ln.Addr().String()
}

func is(n *int, want int) bool { return n != nil && *n == want }

// text is a demand as it is sent.
func text(d *api.Demand) string {
	b, err := json.Marshal(d)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestAnyCoordinatorTellsWhatTheControllingOneWants has calls wait in a coordinator
// that does not control, and asks both.
func TestAnyCoordinatorTellsWhatTheControllingOneWants(t *testing.T) {
	other := newWorld(t, 1, func(w *world) { w.lead, w.watching.ID, w.cfg.QueueTimeout = never, "coordinator-2", 20*time.Second })
	node := other.nodes["node-1"]
	serve := *node.invoke.Load()
	node.on(&node.invoke, refuses(api.CodeNoRoom))
	f, with := replicated(10)
	w := newWorld(t, 3, with, func(w *world) { w.watching.ID = "coordinator-1" })
	w.state.mu.Lock()
	fn := *w.state.functions["f.ns"]
	fn.Revision, fn.Descriptor, fn.Owner = other.fn.Revision, other.fn.Descriptor, other.fn.Owner
	w.state.functions["f.ns"] = &fn
	w.state.mu.Unlock()
	w.joins("coordinator-2", other.tells(t))
	other.joins("coordinator-1", w.tells(t))

	for _, one := range []*world{w, other} {
		if d := one.demand(); !d.OnDemand || d.Wanted != nil || !is(d.Waiting, 0) || d.Unknown != "" {
			t.Errorf("without a policy: %s", text(d))
		}
	}
	w.policy(tens())
	other.policy(tens())
	var wg sync.WaitGroup
	for range 25 {
		msg := other.message(10, time.Minute)
		wg.Go(func() {
			if a := other.send(msg); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	for name, one := range map[string]*world{"the one that controls": w, "the other": other} {
		one.eventually(name+" tells of both", func() bool {
			d := one.demand()
			return !d.OnDemand && is(d.Wanted, 3) && is(d.Waiting, 25) && d.Unknown == ""
		})
	}
	w.eventually("as many are made", func() bool { n, _ := f.total(fn.Revision); return n == 3 })
	node.on(&node.invoke, serve)
	wg.Wait()
	other.eventually("nobody waits any more", func() bool { d := other.demand(); return is(d.Waiting, 0) && is(d.Wanted, 1) })
	if b := other.do("GET", "/v1/functions/f.ns?brief=1", "", nil).body; strings.Contains(string(b), "demand") {
		t.Errorf("a brief description asks others: %s", b)
	}
}

func TestWhatNobodyTellsIsUnknown(t *testing.T) {
	w := newWorld(t, 1, func(w *world) { w.lead, w.watching.ID = never, "coordinator-1" })
	w.policy(tens())
	o, p := w.addCoordinator("coordinator-2"), w.addCoordinator("coordinator-3")
	none, controls := `{"waiting":4,"controls":false}`, `{"waiting":3,"controls":true,"wanted":6}`
	stall := make(chan struct{})
	defer close(stall)
	for _, c := range []struct {
		name    string
		second  func()
		third   string
		wanted  int // -1: unknown
		waiting int
		why     string
	}{
		{"all tell", func() { o.told = none }, controls, 6, 7, ""},
		{"none controls", func() { o.told = none }, none, -1, -1, "none of the coordinators"},
		{"two control", func() { o.told = controls }, controls, -1, 6, "two coordinators say"},
		{"nothing is decided yet", func() { o.told = none }, `{"waiting":0,"controls":true}`, -1, 4, "nothing is decided"},
		{"an older one", func() { o.told = "" }, controls, 6, -1, "coordinator-2 is of a release"},
		{"an older one may control", func() { o.told = "" }, none, -1, -1, "coordinator-2 is of a release"},
		{"one hangs up", func() { o.broken = true }, controls, 6, -1, "coordinator-2 does not answer"},
		{"one is stuck", func() { o.broken, o.told, o.stall = false, none, stall }, none, -1, -1, "coordinator-2 does not answer"},
		{"nothing at all", func() { o.stall, o.told = nil, `{}` }, controls, 6, -1, "coordinator-2 tells what makes no sense"},
		{"less than none", func() { o.told = `{"waiting":-4,"controls":false}` }, controls, 6, -1, "no sense"},
		{"too many", func() { o.told = `{"waiting":1,"controls":true,"wanted":99999999}` }, none, -1, -1, "no sense"},
		{"not its to tell", func() { o.told = `{"waiting":1,"controls":false,"wanted":2}` }, controls, 6, -1, "no sense"},
		{"a list", func() { o.told = `[]` }, controls, 6, -1, "no sense"},
	} {
		o.set(c.second)
		p.set(func() { p.told = c.third })
		began := time.Now()
		d := w.demand()
		if took := time.Since(began); took > waitsTimeout+10*time.Second {
			t.Errorf("%s: it took %v", c.name, took)
		}
		known := func(n *int, want int) bool { return want < 0 && n == nil || is(n, want) }
		if !known(d.Wanted, c.wanted) || !known(d.Waiting, c.waiting) || !strings.Contains(d.Unknown, c.why) || (c.why == "") != (d.Unknown == "") {
			t.Errorf("%s: %s", c.name, text(d))
		}
	}
}

// TestOneThatControlledTellsOfNothingItDecided ends a term and begins another.
func TestOneThatControlledTellsOfNothingItDecided(t *testing.T) {
	terms := make(chan context.CancelFunc)
	f, with := replicated(10)
	w := newWorld(t, 3, with, func(w *world) {
		w.lead = func(ctx context.Context, _ string, run func(context.Context) error) error {
			for ctx.Err() == nil {
				term, end := context.WithCancel(ctx)
				over := make(chan error)
				go func() { over <- run(term) }()
				select {
				case terms <- end:
				case <-ctx.Done():
				}
				if err := <-over; err != nil {
					return err
				}
				select {
				case terms <- nil: // the term is over
				case <-ctx.Done():
				}
			}
			return ctx.Err()
		}
	})
	end := <-terms
	f.set(func() { f.load[w.fn.Revision] = 35 })
	w.policy(tens())
	w.eventually("it tells what it wants", func() bool { return is(w.demand().Wanted, 4) })
	end()
	w.eventually("it tells that it controls no more", func() bool {
		d := w.demand()
		return d.Wanted == nil && d.Waiting == nil && strings.Contains(d.Unknown, "none of the coordinators")
	})
	if v, ok := w.c.scaler.wanted.Load(w.fn.Name); ok {
		t.Errorf("after its term it holds what it decided then: %+v", v)
	}
	<-terms
	end = <-terms
	defer end()
	w.eventually("it controls again, and tells", func() bool { return is(w.demand().Wanted, 4) })
}

func TestWhatIsWantedIsOfAllRevisions(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 3, with)
	p := tens()
	p.Min = 4
	w.policy(p)
	w.eventually("the minimum", func() bool { n, _ := f.total(w.fn.Revision); return n == 4 && is(w.demand().Wanted, 4) })
	f.set(func() { f.room = map[string]int{} }) // none of the new one can start yet
	next := w.update(2, 2000)
	w.eventually("those of the new one too while it starts", func() bool { d := w.demand(); return d.Wanted != nil && *d.Wanted > 4 })
	f.set(func() { f.room = map[string]int{"node-1": 9, "node-2": 9, "node-3": 9} })
	w.eventually("the new one, which has no policy", func() bool {
		d := w.demand()
		return w.described().Revision == next && d.OnDemand && d.Wanted == nil && d.Unknown == ""
	})
}

func TestDemandIsForFunctionsByName(t *testing.T) {
	w := newWorld(t, 1)
	for path, want := range map[string]int{"f.ns": 200, "none.ns": 200, "": 400, "f.ns/x": 400, strings.Repeat("x", 300): 400} {
		var ctx fasthttp.RequestCtx
		ctx.Request.SetRequestURI(api.GatewayPathDemand + path)
		w.c.ServeDemand(&ctx)
		if got := ctx.Response.StatusCode(); got != want {
			t.Errorf("%q: %d %s", path, got, ctx.Response.Body())
		}
		if want == 200 {
			if _, err := parseTold(ctx.Response.Body()); err != nil {
				t.Error(fmt.Errorf("%q: %w", path, err))
			}
		}
	}
}

func TestWhatIsWantedHasTheSharesOfOtherRevisions(t *testing.T) {
	f, with := replicated(10)
	w := newWorld(t, 2, with)
	old := w.fn.Revision
	next := w.update(2, 2000)
	w.alone(next)
	if a := w.say(w.statement(w.owner, 10, next, 50)); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	p := tens()
	p.Min, p.Max = 2, 9
	w.policy(p)
	f.set(func() { f.load[old], f.load[next] = 30, 40 })
	w.eventually("what both need", func() bool { return is(w.demand().Wanted, 7) })
	w.eventually("as many are made", func() bool {
		a, _ := f.total(old)
		b, _ := f.total(next)
		return a == 3 && b == 4
	})
}
