package coordinator

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestManifestBecomesWhatTheNodeIsTold(t *testing.T) {
	var asked *counted
	w := newWorld(t, 1, withOpener(t, &asked))
	n, heard := w.nodes["node-1"], &told{}
	n.tells(heard)
	if a := w.send(w.message(10, time.Minute)); a.status != 200 || heard.last(t).Resources.CPU != 0 || asked.opens.Load() != 0 {
		t.Fatalf("a function without bounds: %d, %+v, %d openings", a.status, heard.last(t), asked.opens.Load())
	}
	w.bounded(someBounds())
	if blob := w.state.Get("f.ns").Bounds; len(blob) == 0 {
		t.Fatal("no blob beside the revision")
	}
	for range 3 {
		if a := w.send(w.message(10, time.Minute)); a.status != 200 {
			t.Fatalf("defaults: %d %s", a.status, a.body)
		}
	}
	if got := heard.last(t); got.Resources.Memory != 96<<20 || got.Resources.PIDs != 77 || got.Resources.CPU != 400 || got.Resources.Storage != 1<<20 || got.Task != "" {
		t.Errorf("defaults: %+v", got)
	}
	if asked.opens.Load() != 1 {
		t.Errorf("the defaults were merged %d times", asked.opens.Load())
	}
	deadline := time.Now().Add(time.Hour)
	header, task := w.wish(w.owner, func(m *manifest.Manifest) {
		m.Needs.MemoryBytes, m.Priority, m.DeadlineMS = 200<<20, 7, uint64(deadline.UnixMilli())
	})
	if a := w.task(header); a.status != 200 {
		t.Fatalf("an override: %d %s", a.status, a.body)
	}
	got := heard.last(t)
	if got.Task != task || got.Resources.Memory != 200<<20 || got.Resources.PIDs != 77 || got.Priority != 7 || got.Deadline != deadline.UnixMilli() {
		t.Errorf("an override: %+v", got)
	}
	offered := n.offered.Load()
	if a := w.task(header); a.code != api.CodeDuplicateTask || a.status != http.StatusConflict {
		t.Errorf("the same task again: %d %s", a.status, a.body)
	}
	other, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	theirs, _ := w.wish(other, func(*manifest.Manifest) {})
	beyond, _ := w.wish(w.owner, func(m *manifest.Manifest) { m.Needs.MemoryBytes = 300 << 20 })
	fixed, _ := w.wish(w.owner, func(m *manifest.Manifest) { m.Needs.CPUMillis = 999 })
	over, _ := w.wish(w.owner, func(m *manifest.Manifest) { m.DeadlineMS = 1 })
	for what, c := range map[string]struct {
		header string
		code   api.Code
		field  string
	}{
		"beyond the maximum":  {beyond, api.CodeExceedsBounds, "memory"},
		"what is fixed":       {fixed, api.CodeExceedsBounds, "cpu"},
		"another's":           {theirs, "sender", ""},
		"a deadline that was": {over, api.CodeDeadline, ""},
		"no base64":           {"!!!", api.CodeInvalid, api.HeaderManifest},
		"too long":            {strings.Repeat("A", api.MaxManifestHeader+1), api.CodeTooLarge, api.HeaderManifest},
	} {
		a := w.task(c.header)
		var p api.Problem
		if err := json.Unmarshal(a.body, &p); err != nil || p.Code != c.code || c.field != "" && p.Field != c.field || p.Remedy == "" && c.field != "" {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	if n.offered.Load() != offered {
		t.Error("a node was offered what was refused")
	}
	// The bounds go with the revision.
	desc, _ := w.describe(w.owner, w.fn.Sequence+1)
	if a := w.put(w.owner, api.Revision{Descriptor: desc, ImageRef: "img"}); a.status != 200 || len(w.state.Get("f.ns").Bounds) != 0 {
		t.Errorf("%d %s, %d bytes of bounds are left", a.status, a.body, len(w.state.Get("f.ns").Bounds))
	}
	w.rest()
}

func TestWithoutAnOpenerManifestsAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	if a := w.task("AAAA"); a.code != api.CodeUnavailable || !strings.Contains(string(a.body), "-manifest-opener") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.do("GET", api.GatewayPathManifestKey, "", nil); a.code != api.CodeUnavailable {
		t.Errorf("%d %s", a.status, a.body)
	}
	desc, _ := w.describe(w.owner, 9)
	if a := w.put(w.owner, api.Revision{Descriptor: desc, ImageRef: "img", Bounds: []byte("x")}); a.code != api.CodeUnavailable {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestTasksAreRetriedAsTheirPolicySays(t *testing.T) {
	var asked *counted
	w := newWorld(t, 1, withOpener(t, &asked))
	w.bounded(someBounds())
	n := w.nodes["node-1"]
	good := *n.invoke.Load()
	failing := func(times int64, how http.HandlerFunc) {
		left := new(atomic.Int64)
		left.Store(times)
		n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
			if left.Add(-1) >= 0 {
				how(rw, r)
				return
			}
			good(rw, r)
		})
	}
	try := func(r manifest.Retry) (answer, string) {
		header, _ := w.wish(w.owner, func(m *manifest.Manifest) { m.Retry = r })
		return w.task(header), header
	}
	startFailed := manifest.Retry{MaxAttempts: 3, Codes: []string{string(api.CodeStartFailed)}}
	for _, c := range []struct {
		what  string
		times int64
		how   http.HandlerFunc
		retry manifest.Retry
		code  api.Code
		calls int64
	}{
		{"a failed start, no policy", 1, refuses(api.CodeStartFailed), manifest.Retry{}, api.CodeStartFailed, 1},
		{"a failed start", 2, refuses(api.CodeStartFailed), startFailed, "", 3},
		{"too many", 5, refuses(api.CodeStartFailed), startFailed, api.CodeStartFailed, 3},
		{"another code", 5, refuses(api.CodeKeyRefused), startFailed, api.CodeKeyRefused, 1},
		{"a lost node, which may have run it", 1, breaks, manifest.Retry{MaxAttempts: 3, Codes: []string{string(api.CodeNodeLost)}}, api.CodeNodeLost, 1},
		{"a lost node, and it may run twice", 1, breaks, manifest.Retry{MaxAttempts: 3, AfterNodeDeath: true}, "", 2},
	} {
		before := n.offered.Load()
		failing(c.times, c.how)
		a, header := try(c.retry)
		if a.code != c.code || n.offered.Load()-before != c.calls {
			t.Errorf("%s: %d %s, after %d calls", c.what, a.status, a.body, n.offered.Load()-before)
		}
		// What reached no agent may come again, what perhaps did may not.
		n.on(&n.invoke, good)
		again := w.task(header)
		if want := c.code == api.CodeStartFailed || c.code == api.CodeKeyRefused; (again.status == 200) != want {
			t.Errorf("%s: the same task again: %d %s", c.what, again.status, again.body)
		}
	}
	w.rest()
}

// Where no node is without a sandbox of the function, one that is to be apart is
// offered all the same: it is the node that knows which of them are idle.
func TestATaskApartIsOfferedWhereSandboxesMayBeIdle(t *testing.T) {
	var asked *counted
	w := newWorld(t, 2, withOpener(t, &asked))
	bounds := someBounds()
	bounds.Overridable = []manifest.Field{manifest.FieldAntiAffinity}
	w.bounded(bounds)
	for id := range w.nodes {
		w.mesh.set(id, func(n *api.NodeView) { n.Load.Hosts = []string{api.HostKey(w.rev.String())} })
	}
	busy := "node-1"
	w.nodes[busy].on(&w.nodes[busy].invoke, refuses(api.CodeNoRoom))
	header, _ := w.wish(w.owner, func(m *manifest.Manifest) { m.Needs.AntiAffinity = manifest.ReplicasApart })
	if a := w.task(header); a.status != 200 || a.header.Get(api.HeaderServedBy) != "node-2" {
		t.Errorf("%d %s, served by %q", a.status, a.body, a.header.Get(api.HeaderServedBy))
	}
	w.mesh.set(busy, func(n *api.NodeView) { n.Load.Hosts = nil })
	w.nodes[busy].on(&w.nodes[busy].invoke, *w.nodes["node-2"].invoke.Load())
	before := w.nodes[busy].offered.Load()
	header, _ = w.wish(w.owner, func(m *manifest.Manifest) { m.Needs.AntiAffinity = manifest.ReplicasApart })
	if a := w.task(header); a.status != 200 || w.nodes[busy].offered.Load() != before+1 {
		t.Errorf("one that has none is not the first: %d %s", a.status, a.body)
	}
	w.rest()
}

func TestWaitingTasksAreSeenOrderedAndCancelled(t *testing.T) {
	var asked *counted
	w := newWorld(t, 1, withOpener(t, &asked), waitsLong)
	w.attemptsTakeTime()
	b := someBounds()
	caller, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.AnyInitiator = true
	w.bounded(b)
	n := w.nodes["node-1"]
	var busy atomic.Bool // the node has one slot
	hold := make(chan struct{})
	var mu sync.Mutex
	var order []string
	n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
		if !busy.CompareAndSwap(false, true) {
			refuses(api.CodeNoRoom)(rw, r)
			return
		}
		defer busy.Store(false)
		<-hold
		var needs api.Needs
		if err := json.Unmarshal([]byte(r.Header.Get(api.HeaderNeeds)), &needs); err != nil {
			t.Error(err)
		}
		mu.Lock()
		order = append(order, needs.Task)
		mu.Unlock()
		io.Copy(rw, r.Body)
	})
	type call struct {
		task string
		done chan answer
	}
	start := func(priority uint8) call {
		header, task := w.wish(w.owner, func(m *manifest.Manifest) { m.Priority = priority })
		c := call{task, make(chan answer, 1)}
		go func() { c.done <- w.task(header) }()
		w.eventually("the task waits", func() bool { return strings.Contains(string(w.do("GET", api.GatewayPathWaiting, "", nil).body), task) })
		return c
	}
	first := make(chan answer, 1)
	header, _ := w.wish(w.owner, func(*manifest.Manifest) {})
	go func() { first <- w.task(header) }()
	w.eventually("the slot is taken", busy.Load)
	low, high, middle, gone := start(1), start(9), start(5), start(9)
	a := w.do("GET", api.GatewayPathWaiting, "", nil)
	var list []api.WaitingTask
	if err := json.Unmarshal(a.body, &list); err != nil || len(list) != 4 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for i, want := range []call{high, gone, middle, low} {
		if list[i].ID != want.task || list[i].Function != "f.ns" || list[i].Deadline <= list[i].Since {
			t.Errorf("place %d: %+v, want %s", i, list[i], want.task)
		}
	}
	path := api.GatewayPathWaiting + "/" + gone.task
	if a := w.signed(caller, "DELETE", path, nil); a.code != api.CodeForbidden {
		t.Errorf("a stranger cancels: %d %s", a.status, a.body)
	}
	if a := w.do("DELETE", path, "", nil); a.code != api.CodeUnauthorized {
		t.Errorf("nobody cancels: %d %s", a.status, a.body)
	}
	if a := w.signed(w.owner, "DELETE", path, nil); a.status != 204 {
		t.Errorf("its initiator cancels: %d %s", a.status, a.body)
	}
	if a := <-gone.done; a.code != api.CodeCancelled {
		t.Errorf("the cancelled task: %d %s", a.status, a.body)
	}
	// Why it waits is its initiator's to see, and the owner's.
	at := api.GatewayPathTasks + "/" + low.task + "/placement"
	if a := w.signed(caller, "GET", at, nil); a.code != api.CodeNotFound {
		t.Errorf("a stranger asks why: %d %s", a.status, a.body)
	}
	var why api.Placement
	a = w.signed(w.owner, "GET", at, nil)
	if err := json.Unmarshal(a.body, &why); err != nil || why.Attempts == 0 || why.Node != "" {
		t.Errorf("why it waits: %d %s", a.status, a.body)
	}
	close(hold)
	for _, done := range []chan answer{first, low.done, high.done, middle.done} {
		if a := <-done; a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	mu.Lock()
	if len(order) != 4 || order[1] != high.task || order[2] != middle.task || order[3] != low.task {
		t.Errorf("served %v, want the first, %s, %s, %s", order, high.task, middle.task, low.task)
	}
	mu.Unlock()
	a = w.signed(w.owner, "GET", at, nil)
	if err := json.Unmarshal(a.body, &why); err != nil || why.Node != "node-1" || why.Nodes[0].Outcome != api.OutcomeTaken {
		t.Errorf("where it went: %d %s", a.status, a.body)
	}
	w.rest()
}

// What a placement tells names resources and no amounts.
func TestExplanationNamesResourcesOnly(t *testing.T) {
	var asked *counted
	w := newWorld(t, 2, withOpener(t, &asked), func(w *world) { w.cfg.QueueTimeout = 100 * time.Millisecond })
	w.bounded(someBounds())
	w.mesh.set("node-1", func(n *api.NodeView) { n.Load.Free.Memory = 1 << 20 })
	w.mesh.set("node-2", func(n *api.NodeView) { n.Load.Draining = true })
	header, task := w.wish(w.owner, func(m *manifest.Manifest) { m.Needs.MemoryBytes = 123456789 })
	if a := w.task(header); a.code != api.CodeNoRoom || strings.Contains(string(a.body), "123456789") {
		t.Errorf("%d %s", a.status, a.body)
	}
	a := w.signed(w.owner, "GET", api.GatewayPathTasks+"/"+task+"/placement", nil)
	var why api.Placement
	if err := json.Unmarshal(a.body, &why); err != nil || why.Code != api.CodeNoRoom || len(why.Nodes) != 2 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for _, n := range why.Nodes {
		want := map[string]string{"node-1": "memory", "node-2": "draining"}[n.Node]
		if n.Outcome != api.OutcomeUnfit || n.Reason != want {
			t.Errorf("%+v, want %s", n, want)
		}
	}
	if strings.Contains(string(a.body), "123456789") {
		t.Error("it tells an amount")
	}
}

func TestNeedsAsJSONAndWiped(t *testing.T) {
	w := newWorld(t, 0)
	w.do("GET", "/healthz", "", nil) // a server that serves can be shut down
	r, err := w.c.routeOf("f.ns")
	if err != nil {
		t.Fatal(err)
	}
	id := sealed.ID{1, 2}
	m := &manifest.Manifest{Task: id, Needs: manifest.Needs{CPUMillis: 1 << 20, MemoryBytes: 1 << 50, StorageBytes: 1 << 50, ScratchBytes: 1 << 50, PIDs: 1 << 22,
		IngressBPS: 1 << 50, EgressBPS: 1 << 50, Cores: 64, AntiAffinity: manifest.ReplicasApart,
		Allow:         []manifest.Reach{{Protocol: manifest.UDP, Network: 0xffffffff, Bits: 32, From: 65534, To: 65535}, {Protocol: manifest.TCP, Network: 10 << 24, Bits: 8, From: 443, To: 443}},
		Ports:         []manifest.Port{{Protocol: manifest.TCP, Number: 65535, Count: 1}, {Protocol: manifest.UDP, Count: 63}},
		Constraints:   []manifest.Requirement{{Key: "zone", Op: manifest.Equals, Value: "canary"}},
		Architectures: []string{"amd64"}}, Priority: 9, DeadlineMS: 1 << 50}
	d, err := newDemand(r, m)
	if err != nil {
		t.Fatal(err)
	}
	want, err := api.Needs{Task: id.String(), Apart: true, Priority: 9, Deadline: 1 << 50,
		Resources: api.Resources{CPU: 1 << 20, Memory: 1 << 50, Storage: 1 << 50, Scratch: 1 << 50, PIDs: 1 << 22, Ingress: 1 << 50, Egress: 1 << 50, Cores: 64},
		Allow:     []string{"255.255.255.255/32:65534-65535/udp", "10.0.0.0/8:443/tcp"},
		Ports:     []api.PortNeed{{Protocol: "tcp", Number: 65535, Count: 1}, {Protocol: "udp", Count: 63}}}.Settle(r.limits)
	if err != nil {
		t.Fatal(err)
	}
	if key := api.NeedsKey(r.hex, want); d.request.Needs != key {
		t.Errorf("key %s, want %s", d.request.Needs, key)
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.json, text) {
		t.Errorf("%s, want %s", d.json, text)
	}
	if cap(d.json) != needsSize+2*portSize+2*reachSize {
		t.Error("the buffer grew, and so left a copy")
	}
	header, value := d.headers[0].Value, d.request.Require[0].Value
	if value != "canary" || d.request.Archs[0] != "amd64" || !d.request.Apart {
		t.Errorf("%+v", d.request)
	}
	d.wipe()
	if strings.Trim(header, "\x00") != "" || strings.Trim(value, "\x00") != "" {
		t.Errorf("after wiping: %q, %q", header, value)
	}
}

// A task that wants no other sandbox of its function beside it is not offered to a
// node where this coordinator has just sent one: it is known here before the mesh
// hears of it.
func TestTasksApartAreNotOfferedInVain(t *testing.T) {
	var asked *counted
	w := newWorld(t, 3, withOpener(t, &asked))
	b := someBounds()
	b.Overridable = append(b.Overridable, manifest.FieldAntiAffinity)
	slices.Sort(b.Overridable)
	b.Overridable = slices.Compact(b.Overridable)
	w.bounded(b)
	hold, held := make(chan struct{}), make(chan struct{}, 3)
	for _, n := range w.nodes {
		var busy atomic.Bool
		n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
			if ms, err := strconv.ParseInt(r.Header.Get(api.HeaderTime), 10, 64); err != nil || time.Since(time.UnixMilli(ms)).Abs() > time.Minute {
				t.Errorf("the node is told the time %q", r.Header.Get(api.HeaderTime))
			}
			if !busy.CompareAndSwap(false, true) {
				t.Error("offered to a node that has one")
				refuses(api.CodeNoRoom)(rw, r)
				return
			}
			defer busy.Store(false)
			held <- struct{}{}
			<-hold
			io.Copy(rw, r.Body)
		})
	}
	done := make(chan answer, 3)
	for range 3 {
		header, _ := w.wish(w.owner, func(m *manifest.Manifest) { m.Needs.AntiAffinity = manifest.ReplicasApart })
		go func() { done <- w.task(header) }()
		select {
		case <-held:
		case a := <-done:
			t.Fatalf("%d %s", a.status, a.body)
		case <-time.After(30 * time.Second):
			t.Fatal("it is nowhere")
		}
	}
	close(hold)
	for range 3 {
		if a := <-done; a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if r := w.fnRoute(); len(r.hosting.at) != 0 {
		t.Errorf("it is still thought to be at %v", r.hosting.at)
	}
	w.rest()
}
