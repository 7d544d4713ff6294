package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// lends makes a node that lends everything.
func lends(w *world) {
	w.cfg.Capacity.Scratch, w.cfg.Capacity.Ingress, w.cfg.Capacity.Egress = 1<<30, 1000, 1000
	w.cfg.Ports = PortRange{Low: 31000, High: 31009}
	w.cfg.Cores = cgroups.CPUs{4, 5, 7}
	w.net, w.disk = newFitter(PartIngress, PartEgress, PartPorts, PartCores), newFitter(PartScratch)
}

// leap has the node's clock have leapt just now, or not at all.
func (w *world) leap(leapt bool) {
	w.n.clock.mu.Lock()
	defer w.n.clock.mu.Unlock()
	w.n.clock.leapt, w.n.clock.leaptAt = leapt, time.Since(w.n.started)
}

// ask invokes f with needs.
func (w *world) ask(f function, needs api.Needs) (code string, refused bool) {
	w.t.Helper()
	b, err := json.Marshal(needs)
	if err != nil {
		w.t.Fatal(err)
	}
	status, h, body := w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 100), api.HeaderNeeds, string(b))
	if status == 200 {
		return "ok", false
	}
	var p api.Problem
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		w.t.Fatalf("%d %s", status, body)
	}
	if r := h.Get(api.HeaderRefused); r != "" && r != string(p.Code) {
		w.t.Errorf("refused with %q and %q", r, p.Code)
	}
	return string(p.Code), h.Get(api.HeaderRefused) != ""
}

func (w *world) fleet() (out []*sandbox) {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	for _, s := range w.n.fleet {
		out = append(out, s)
	}
	return out
}

// empty waits until nothing is reserved any more.
func (w *world) empty() {
	w.t.Helper()
	w.n.removeAll()
	w.eventually("nothing is reserved", func() bool {
		w.n.mu.Lock()
		defer w.n.mu.Unlock()
		return w.n.ledger.reserved == w.n.pool.held && len(w.n.ports.held) == 0 && len(w.n.fleet) == 0 &&
			(w.net == nil || w.net.count() == 0) && (w.disk == nil || w.disk.count() == 0)
	})
}

func TestSandboxesOfUnlikeNeedsAreNeverMixed(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	if code, _ := w.ask(f, api.Needs{Resources: api.Resources{CPU: 200, Storage: 2 << 20}, Priority: 3}); code != "ok" {
		t.Fatal(code)
	}
	// Like needs, of another task: the same sandbox.
	for _, n := range []api.Needs{
		{Resources: api.Resources{CPU: 200, Storage: 2 << 20}, Task: strings.Repeat("ab", 16)},
		{Resources: api.Resources{CPU: 200, Storage: 2 << 20, Memory: 64 << 20, PIDs: 32}, Deadline: time.Now().Add(time.Hour).UnixMilli()},
	} {
		if code, _ := w.ask(f, n); code != "ok" {
			t.Fatal(code)
		}
	}
	all := w.fleet()
	if len(all) != 1 {
		t.Fatalf("%d sandboxes for like needs", len(all))
	}
	info := all[0].box.runtime().Info()
	if want := (api.Resources{CPU: 200, Memory: 64 << 20, PIDs: 32, Tmp: 2 << 20, Storage: 2 << 20}); info.Resources != want {
		t.Errorf("limits %+v, want %+v", info.Resources, want)
	}
	if code, _ := w.ask(f, api.Needs{Resources: api.Resources{CPU: 201}}); code != "ok" {
		t.Fatal(code)
	}
	if status, _, _ := w.invoke(f); status != 200 {
		t.Fatal(status)
	}
	keys := map[string]bool{}
	for _, s := range w.fleet() {
		keys[s.rev.key()] = true
	}
	if len(keys) != 3 {
		t.Errorf("%d kinds of sandboxes for three unlike needs", len(keys))
	}
	// What changes nothing of its sandbox is served by those of the descriptor.
	if code, _ := w.ask(f, api.Needs{Priority: 5, Resources: api.Resources{CPU: 400, PIDs: 32}}); code != "ok" || len(w.fleet()) != 3 {
		t.Errorf("%s, %d sandboxes", code, len(w.fleet()))
	}
	settled, err := api.Needs{Resources: api.Resources{CPU: 201}}.Settle(w.rev(f).limits)
	if err != nil {
		t.Fatal(err)
	}
	w.n.publish()
	var l api.NodeLoad
	if err := json.Unmarshal([]byte(w.n.load.Load().json), &l); err != nil {
		t.Fatal(err)
	}
	digest := f.digest.String()
	if len(l.Warm) != 3 || l.Warm[api.NeedsKey(digest, settled)] == 0 || l.Warm[api.RevisionKey(digest)] == 0 {
		t.Errorf("the mesh hears of %v", l.Warm)
	}
	w.empty()
}

func TestNeedsThatNobodyHereMeetsAreRefused(t *testing.T) {
	plain := newWorld(t)
	f := plain.known("f")
	for what, c := range map[string]struct {
		needs api.Needs
		code  string
	}{
		"scratch":             {api.Needs{Resources: api.Resources{Scratch: 1}}, "no_room"},
		"ingress":             {api.Needs{Resources: api.Resources{Ingress: 1}}, "no_room"},
		"egress":              {api.Needs{Resources: api.Resources{Egress: 1}}, "no_room"},
		"a port":              {api.Needs{Ports: []api.PortNeed{{Protocol: "tcp", Count: 1}}}, "no_room"},
		"negative":            {api.Needs{Resources: api.Resources{CPU: -1}}, "invalid"},
		"too much":            {api.Needs{Resources: api.Resources{CPU: 1 << 60}}, "invalid"},
		"more than there is":  {api.Needs{Resources: api.Resources{CPU: 2001}}, "no_room"},
		"storage over memory": {api.Needs{Resources: api.Resources{Storage: 65 << 20}}, "invalid"},
		"other protocol":      {api.Needs{Ports: []api.PortNeed{{Protocol: "sctp", Count: 1}}}, "invalid"},
		"ports miscounted":    {api.Needs{Resources: api.Resources{Ports: 3}, Ports: []api.PortNeed{{Protocol: "tcp", Count: 1}}}, "invalid"},
		"task":                {api.Needs{Task: "xyz"}, "invalid"},
		"late":                {api.Needs{Deadline: time.Now().Add(-time.Second).UnixMilli()}, "deadline"},
		"far":                 {api.Needs{Deadline: time.Now().Add(1000 * time.Hour).UnixMilli()}, "invalid"},
	} {
		if code, refused := plain.ask(f, c.needs); code != c.code || !refused {
			t.Errorf("%s: %s, refused %t", what, code, refused)
		}
	}
	status, h, _ := plain.do("POST", api.NodePathInvoke+f.target(), plain.message(f, 10), api.HeaderNeeds, `{"resources":{},"gpu":1}`)
	if status != 400 || h.Get(api.HeaderRefused) != "invalid" {
		t.Errorf("a need that is not understood: %d %q", status, h.Get(api.HeaderRefused))
	}
	if n := plain.delivered.Load(); n != 0 {
		t.Errorf("%d messages reached an agent", n)
	}
	plain.empty()
}

func TestTaskIsRunOnce(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	id := strings.Repeat("0f", 16)
	needs := api.Needs{Task: id}
	// Refused before anything ran: it may come again.
	w.fake.Fail(runtimetest.OpCreate, errors.New("no"))
	if code, refused := w.ask(f, needs); code != "start_failed" || !refused {
		t.Fatalf("%s, refused %t", code, refused)
	}
	if code, _ := w.ask(f, needs); code != "ok" {
		t.Fatal(code)
	}
	if code, refused := w.ask(f, needs); code != "replay" || refused {
		t.Errorf("the second time: %s, refused %t: a coordinator would go to the next node", code, refused)
	}
	if n := w.delivered.Load(); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	w.empty()
}

func TestTaskSetIsBoundedAndForgets(t *testing.T) {
	set := taskSet{taken: map[string]taken{}}
	now := time.Now()
	for i := range maxTasks {
		if err := set.begin(fmt.Sprint(i), now.Add(time.Minute), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.begin("more", now.Add(time.Minute), now); api.CodeOf(err) != api.CodeBusy {
		t.Errorf("a full set: %v", err)
	}
	if err := set.begin("3", now.Add(time.Minute), now); err == nil {
		t.Error("a known one was taken by a full set")
	}
	later := now.Add(2 * time.Minute)
	if err := set.begin("3", later.Add(time.Minute), later); err != nil || len(set.taken) != 1 {
		t.Errorf("after they have expired: %v, %d are kept", err, len(set.taken))
	}
}

// A function that serves on the handed socket may open internet sockets where its
// task has a network, and only there.
func TestNetworkOpensSocketsToFunctionsOnTheHandedOne(t *testing.T) {
	w := newWorld(t, lends)
	var told atomic.Bool
	w.cut = func(c api.Control) bool {
		if c.Mounted != nil {
			told.Store(c.Mounted.Inet)
		}
		return false
	}
	f := w.known("f")
	for _, c := range []struct {
		needs api.Needs
		inet  bool
	}{
		{api.Needs{}, false}, {api.Needs{Resources: api.Resources{CPU: 100}}, false},
		{api.Needs{Resources: api.Resources{Ingress: 100, Egress: 100}}, true},
		{api.Needs{Resources: api.Resources{Ingress: 100, Egress: 100}, Allow: []string{"10.0.0.0/8:443/tcp"}}, true},
	} {
		if code, _ := w.ask(f, c.needs); code != "ok" {
			t.Fatal(code)
		}
		for _, s := range w.fleet() {
			if spec := w.n.spec(s, runtime.Image{}); spec.AllowInet != c.inet || told.Load() != c.inet {
				t.Errorf("%+v: internet sockets %t, the agent was told %t", c.needs, spec.AllowInet, told.Load())
			}
		}
		w.empty()
	}
	// Unlike lists are unlike needs; an entry that nobody reads is refused.
	if code, refused := w.ask(f, api.Needs{Resources: api.Resources{Ingress: 1, Egress: 1}, Allow: []string{"10.0.0.1/8:443/tcp"}}); code != "invalid" || !refused {
		t.Errorf("no network: %s", code)
	}
	if code, _ := w.ask(f, api.Needs{Allow: []string{"10.0.0.0/8:443/tcp"}}); code != "invalid" {
		t.Errorf("a list without bandwidth: %s", code)
	}
	w.empty()
}

func TestApartMeansNoSecondSandbox(t *testing.T) {
	w := newWorld(t)
	f, g := w.known("f", func(d *sealed.Descriptor) { d.Config.MaxInFlight = 1 }), w.known("g")
	hold, held := make(chan struct{}), make(chan struct{}, 8)
	var release sync.Once
	defer release.Do(func() { close(hold) })
	var blocked atomic.Int64
	w.work = func(http.ResponseWriter, *http.Request) {
		if blocked.Add(1) == 1 {
			held <- struct{}{}
			<-hold
		}
	}
	done := make(chan string, 1)
	go func() { code, _ := w.ask(f, api.Needs{Apart: true}); done <- code }()
	<-held
	for what, n := range map[string]api.Needs{"like it": {Apart: true}, "any other": {Resources: api.Resources{CPU: 100}}} {
		if code, refused := w.ask(f, n); code != "no_room" && code != "busy" || !refused {
			t.Errorf("a second one %s: %s", what, code)
		}
	}
	if status, _, _ := w.invoke(g); status != 200 {
		t.Errorf("another function's: %d", status)
	}
	release.Do(func() { close(hold) })
	if code := <-done; code != "ok" {
		t.Fatal(code)
	}
	// The first is idle now: it gives way.
	if code, _ := w.ask(f, api.Needs{Resources: api.Resources{CPU: 100}}); code != "ok" {
		t.Errorf("once it is idle: %s", code)
	}
	n := 0
	for _, s := range w.fleet() {
		if s.rev.name == "f.ns" && s.state < stopping {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d sandboxes of the function", n)
	}
	w.empty()
}

func TestSecondCheckRefusesBeforeAnythingIsOpened(t *testing.T) {
	log := &noted{t: t}
	w := newWorld(t, lends, func(w *world) { w.anomalies = log })
	for i, c := range []struct {
		what string
		on   func()
		off  func()
	}{
		{"memory", func() { w.machine.Store(&api.Resources{CPU: 1000, Memory: 10 << 20, PIDs: 1 << 20}) }, func() { w.machine.Store(nil) }},
		{"pids", func() { w.machine.Store(&api.Resources{CPU: 1000, Memory: 1 << 40, PIDs: 3}) }, func() { w.machine.Store(nil) }},
		{"disk", func() { w.diskFree.Store(1) }, func() { w.diskFree.Store(1 << 40) }},
		{"kernel", func() { w.kernel.Store(true) }, func() { w.kernel.Store(false) }},
		{"clock", func() { w.leap(true) }, func() { w.leap(false) }},
	} {
		f := w.known(fmt.Sprintf("f%d", i))
		c.on()
		code, refused := w.ask(f, api.Needs{Resources: api.Resources{Scratch: 1 << 20, PIDs: 8}})
		c.off()
		if code != string(api.CodeSecondCheck) || !refused {
			t.Errorf("%s: %s, refused %t", c.what, code, refused)
		}
		if got := log.of(anomaly.SecondCheckFailed); len(got) != i+1 || got[i].Code != c.what {
			t.Errorf("%s: noted %+v", c.what, got)
		}
		w.empty()
		if code, _ := w.ask(f, api.Needs{Resources: api.Resources{Scratch: 1 << 20, PIDs: 8}}); code != "ok" {
			t.Errorf("%s: afterwards %s", c.what, code)
		}
	}
	if n := w.delivered.Load(); n != 5 {
		t.Errorf("%d messages reached agents, want the 5 of starts that passed", n)
	}
	w.empty()
}

// What a sandbox has, written for the next life of the daemon, is read as it was,
// and fits where the runtime keeps it.
func TestWhatASandboxHasOutlivesTheDaemonExactly(t *testing.T) {
	w := newWorld(t, lends)
	rev := w.rev(w.known("f"))
	rapid.Check(t, func(t *rapid.T) {
		needs := api.Needs{Apart: rapid.Bool().Draw(t, "apart")}
		needs.Resources = api.Resources{CPU: rapid.Int64Range(0, 1<<50).Draw(t, "cpu"), Scratch: rapid.Int64Range(0, 1<<50).Draw(t, "scratch"), Egress: rapid.Int64Range(0, 1<<50).Draw(t, "egress"),
			Cores: rapid.Int64Range(0, api.MaxTaskCores).Draw(t, "cores")}
		named := rapid.SliceOfNDistinct(rapid.IntRange(1, 65535), 0, 58, rapid.ID).Draw(t, "named")
		for _, number := range named {
			needs.Ports = append(needs.Ports, api.PortNeed{Protocol: rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "protocol"), Number: number, Count: 1})
		}
		for i := range rapid.IntRange(0, api.MaxReach).Draw(t, "allow") {
			needs.Resources.Ingress, needs.Resources.Egress = 1, 1
			needs.Allow = append(needs.Allow, fmt.Sprintf("255.255.255.%d/32:60000-60001/tcp", 100+i))
		}
		for _, protocol := range []string{"tcp", "udp"} {
			if k := rapid.IntRange(0, 3).Draw(t, protocol); k > 0 {
				needs.Ports = append(needs.Ports, api.PortNeed{Protocol: protocol, Count: k})
			}
		}
		settled, err := needs.Settle(rev.limits)
		if err != nil {
			t.Fatal(err)
		}
		s := &sandbox{rev: rev.with(settled)}
		for i := range settled.Resources.Cores {
			s.cores = append(s.cores, 1000+2*int(i))
		}
		for _, p := range settled.Ports {
			for i := range p.Count {
				s.ports = append(s.ports, Port{p.Protocol, max(p.Number, 60000+i)})
			}
		}
		text := s.reservedText()
		if len(text) > runtime.MaxReserved {
			t.Fatalf("%d bytes: %s", len(text), text)
		}
		again, had, err := w.n.revive(rev, s.rev.key(), text)
		if err != nil || !slices.Equal(had.Ports, s.ports) || !slices.Equal(had.Cores, s.cores) || again.limits != s.rev.limits || !reflect.DeepEqual(again.asked, s.rev.asked) {
			t.Fatalf("%+v, %+v, %v of %s", again, had, err, text)
		}
		if _, _, err := w.n.revive(rev, rev.key(), text); err == nil {
			t.Fatal("a sandbox with needs passed for one without")
		}
	})
	for _, bad := range []string{"{", `{"ports":["1/sctp"]}`, `{"any":{"tcp":2},"ports":["5/tcp"]}`, `{"resources":{"cores":2},"cores":[5]}`, `{"resources":{"cpu":-1}}`, ""} {
		if _, _, err := w.n.revive(rev, rev.key()+":0123456789abcdef", bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A large body goes by a ticket: its slot is in a sandbox of the same needs, and
// comes back where the invocation is refused.
func TestTicketsAreForTheirNeedsAlone(t *testing.T) {
	w := newWorld(t)
	f := w.known("f", func(d *sealed.Descriptor) { d.Config.MaxInFlight = 1 })
	of := func(task string) string { return `{"resources":{"cpu":100},"task":"` + strings.Repeat(task, 16) + `"}` }
	small, other := of("12"), of("13")
	ticket := func(needs string) string {
		status, _, body := w.do("POST", api.NodePathAdmit+f.target(), nil, api.HeaderNeeds, needs)
		var tk api.Ticket
		if err := json.Unmarshal([]byte(body), &tk); status != 200 || err != nil {
			t.Fatalf("%d %s, %v", status, body, err)
		}
		return tk.Ticket
	}
	use := func(ticket, needs string) int {
		header := []string{api.HeaderTicket, ticket}
		if needs != "" {
			header = append(header, api.HeaderNeeds, needs)
		}
		status, _, _ := w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 10), header...)
		return status
	}
	if got := use(ticket(small), small); got != 200 {
		t.Errorf("with its needs: %d", got)
	}
	// The node has them from the ticket: who brings it has forgotten them.
	if got := use(ticket(other), ""); got != 200 || len(w.fleet()) != 1 {
		t.Errorf("a ticket for needs without them: %d, %d sandboxes", got, len(w.fleet()))
	}
	if got := use(ticket(other), ""); got != 409 {
		t.Errorf("the same task by its ticket: %d", got)
	}
	g := w.known("g")
	if status, _, _ := w.do("POST", api.NodePathInvoke+g.target(), w.message(g, 10), api.HeaderTicket, ticket(of("14"))); status != 400 {
		t.Errorf("a ticket of another function: %d", status)
	}
	soon := ticket(fmt.Sprintf(`{"resources":{"cpu":100},"deadline":%d}`, time.Now().Add(200*time.Millisecond).UnixMilli()))
	w.eventually("its deadline is over", func() bool {
		w.n.mu.Lock()
		defer w.n.mu.Unlock()
		return w.n.tickets[soon].task.late(time.Now()) != nil
	})
	if got := use(soon, ""); got != 504 {
		t.Errorf("a ticket after the task's deadline: %d", got)
	}
	if got := use(ticket(small), small); got != 409 { // the task has run
		t.Errorf("the same task: %d", got)
	}
	if got := use(ticket(small), "{"); got != 400 {
		t.Errorf("needs that are none: %d", got)
	}
	w.eventually("all slots are back", func() bool { _, _, inFlight := w.held(); return inFlight == 0 })
	w.empty()
}

func TestGatewayTakesNoNeeds(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	a := w.gateway().do("POST", api.GatewayPathInvoke+f.name, api.ContentTypeSealed, w.message(f, 10), api.HeaderNeeds, `{"resources":{}}`)
	if a.status != 403 || a.Code != api.CodeForbidden {
		t.Errorf("%d %s", a.status, a.body)
	}
}
