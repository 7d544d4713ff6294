package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestInvocationStartsColdAndGoesOnWarm(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	for i, want := range []string{"cold", "warm", "warm"} {
		msg := w.message(f, 100)
		status, h, body := w.do("POST", api.NodePathInvoke+f.target(), msg)
		if status != 200 || body != string(msg) || h.Get(api.HeaderStart) != want || h.Get(api.HeaderServedBy) != "node-1" {
			t.Fatalf("call %d: %d, %s, %d bytes", i, status, h.Get(api.HeaderStart), len(body))
		}
	}
	if w.released.Load() != 1 {
		t.Errorf("keys were asked for %d times", w.released.Load())
	}
}

func TestManyCallersOfAColdFunctionShareOneStart(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if status, _, body := w.invoke(f); status != 200 {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	wg.Wait()
	if n := len(w.fake.Sandboxes()); n != 1 {
		t.Errorf("%d sandboxes", n)
	}
}

func TestReplayIsRefusedPastTheLifeOfASandbox(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	msg := w.message(f, 10)
	path := api.NodePathInvoke + f.target()
	if status, _, body := w.do("POST", path, msg); status != 200 {
		t.Fatalf("first: %d %s", status, body)
	}
	for _, when := range []string{"in the same sandbox", "in the next one"} {
		status, h, body := w.do("POST", path, msg)
		if status != 409 || !strings.Contains(body, `"replay"`) || h.Get(api.HeaderRefused) != "" {
			t.Errorf("%s: %d %s, refused %q", when, status, body, h.Get(api.HeaderRefused))
		}
		w.do("DELETE", api.NodePathFunctions+f.name, nil)
		w.eventually("the sandbox is gone", func() bool { return len(w.fake.Sandboxes()) == 0 })
		w.tell(f)
	}
	if n := w.delivered.Load(); n != 1 {
		t.Errorf("delivered %d times", n)
	}
}

// It takes no key to make such a message: it must cost no sandbox, and no place
// in the replay set for longer than a reader would take it.
func TestMessageThatNoAgentWouldTakeIsNotRemembered(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	path := api.NodePathInvoke + f.target()
	good := w.message(f, 10)
	p, err := sealed.Peek(good)
	if err != nil {
		t.Fatal(err)
	}
	header := p.Len - 125 // of the message; docs/envelope.md
	far := bytes.Clone(good)
	binary.BigEndian.PutUint64(far[header+28:], 1<<60) // expires
	reply := bytes.Clone(good)
	reply[6] = byte(sealed.RoleBundle) // has no times
	binary.BigEndian.PutUint64(reply[header+20:], 1<<60)
	binary.BigEndian.PutUint64(reply[header+28:], 1<<60)
	for what, c := range map[string]struct {
		msg  []byte
		code string
	}{"expires in a million years": {far, `"window"`}, "is no request": {reply, `"format"`}} {
		if status, _, body := w.do("POST", path, c.msg); status/100 != 4 || !strings.Contains(body, c.code) {
			t.Errorf("%s: %d %s", what, status, body)
		}
	}
	if n := w.rev(f).seen.Len(); n != 0 || len(w.fake.Sandboxes()) != 0 {
		t.Errorf("%d messages remembered, %d sandboxes started", n, len(w.fake.Sandboxes()))
	}
	if status, _, body := w.do("POST", path, good); status != 200 {
		t.Errorf("the message itself: %d %s", status, body)
	}
}

func TestRefusalSaysThatNothingWasDelivered(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	unknown := w.deploy("other", 1)
	newer := f
	newer.seq++
	big := w.known("big", func(d *sealed.Descriptor) { d.Config.Resources.MemoryBytes = 4 << 30 })
	wide := w.known("wide", func(d *sealed.Descriptor) { d.Config.Resources.CPUMillis = 2001 })
	for what, c := range map[string]struct {
		f    function
		code api.Code
	}{
		"unknown revision": {unknown, api.CodeUnknownRevision},
		"newer descriptor": {newer, api.CodeUnknownRevision},
		"too much memory":  {big, api.CodeNoRoom},
		"too much cpu":     {wide, api.CodeNoRoom},
	} {
		for _, size := range []int{100, 200 << 10} { // the larger one must be read, or its sender sees a broken connection
			status, h, body, err := w.try("POST", api.NodePathInvoke+c.f.target(), w.message(c.f, size))
			if err != nil || api.Code(h.Get(api.HeaderRefused)) != c.code || status != 503 {
				t.Errorf("%s, %d bytes: %d %s %q %v", what, size, status, body, h.Get(api.HeaderRefused), err)
			}
			if h.Get(api.HeaderLoad) == "" {
				t.Errorf("%s: no load comes along", what)
			}
		}
	}
	wrong := f
	wrong.name = "g.ns"
	if status, _, _ := w.do("POST", api.NodePathInvoke+wrong.target(), nil); status != 400 {
		t.Errorf("revision of another function: %d", status)
	}
	if n := w.delivered.Load(); n != 0 {
		t.Errorf("%d were delivered", n)
	}
}

func TestWhyASandboxDidNotStartIsTold(t *testing.T) {
	reason := &api.Error{Code: api.CodeFunctionNotReady, Message: "does not listen", Remedy: "set upstream"}
	w := newWorld(t, func(w *world) { w.hello = func(api.FunctionName) error { return reason } })
	f := w.known("f")
	for range 3 {
		status, h, body := w.invoke(f)
		if status != 503 || h.Get(api.HeaderRefused) != string(api.CodeFunctionNotReady) || !strings.Contains(body, "set upstream") {
			t.Errorf("%d %q %s", status, h.Get(api.HeaderRefused), body)
		}
	}
	w.fake.Fail(runtimetest.OpCreate, errors.New("no more cgroups"))
	if status, h, body := w.invoke(f); status != 503 || h.Get(api.HeaderRefused) != string(api.CodeStartFailed) {
		t.Errorf("%d %q %s", status, h.Get(api.HeaderRefused), body)
	}
	w.eventually("nothing is reserved", func() bool { r, _, _ := w.held(); return r == api.Resources{} })
	if left := w.fake.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A sandbox that is removed in the middle of its start must not come up behind
// everybody's back.
func TestRemovalDuringAStartLeavesNothing(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond} {
		hold := make(chan struct{})
		w := newWorld(t, func(w *world) {
			w.hello = func(api.FunctionName) error {
				select {
				case <-hold:
				case <-time.After(200 * time.Millisecond):
				}
				return nil
			}
		})
		f := w.known("f")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _, _ = w.try("POST", api.NodePathInvoke+f.target(), w.message(f, 1))
		}()
		time.Sleep(after) // another moment of the start each time
		w.n.removeAll()
		close(hold)
		<-done
		w.n.removeAll()
		w.eventually("nothing is left or reserved", func() bool {
			r, _, _ := w.held()
			return len(w.fake.Sandboxes()) == 0 && r == api.Resources{}
		})
		w.n.mu.Lock()
		if len(w.n.byRev) != 0 {
			t.Errorf("%d revisions are still listed", len(w.n.byRev))
		}
		w.n.mu.Unlock()
	}
}

func TestRetiredSandboxFinishesItsWorkAndTakesNoMore(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{}, 8)
	w := newWorld(t, func(w *world) {
		w.work = func(rw http.ResponseWriter, r *http.Request) {
			begun <- struct{}{}
			<-release
			io.WriteString(rw, "done")
		}
	})
	f := w.known("f")
	got := make(chan string, 1)
	go func() { _, _, b := w.invoke(f); got <- b }()
	<-begun
	first := w.fake.Sandboxes()
	next := w.deploy("f", 2) // the same revision under new keys
	w.tell(next)
	go func() { w.invoke(next) }()
	<-begun
	if now := w.fake.Sandboxes(); len(now) != 2 {
		t.Errorf("sandboxes %v, first %v", now, first)
	}
	close(release)
	if b := <-got; b != "done" {
		t.Errorf("the invocation under way: %q", b)
	}
	w.eventually("the retired one is gone", func() bool {
		now := w.fake.Sandboxes()
		return len(now) == 1 && now[0] != first[0]
	})
	w.eventually("nothing is in flight", func() bool { _, _, q := w.held(); return q == 0 })
}

func TestIdleSandboxStops(t *testing.T) {
	w := newWorld(t)
	f := w.known("f", func(d *sealed.Descriptor) { d.Config.IdleMS = 100 })
	w.invoke(f)
	w.eventually("it is gone", func() bool { return len(w.fake.Sandboxes()) == 0 })
	if status, h, _ := w.invoke(f); status != 200 || h.Get(api.HeaderStart) != "cold" {
		t.Errorf("%d %s", status, h.Get(api.HeaderStart))
	}
	w.eventually("the list has the one that ended, and why", func() bool {
		_, _, body := w.do("GET", api.NodePathSandboxes+"?function="+f.name, nil)
		var all []api.SandboxStatus
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			t.Fatal(err)
		}
		return len(all) == 2 && all[1].State == "dead" && all[1].LastError == "idle"
	})
}

func TestIdleSandboxesMakeRoomOldestFirst(t *testing.T) {
	w := newWorld(t) // 2000 millicores: four of 400
	var names []string
	for i := range 4 {
		f := w.known(fmt.Sprintf("f%d", i))
		names = append(names, f.name)
		if status, _, body := w.invoke(f); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
		w.eventually("it is idle", func() bool { _, _, q := w.held(); return q == 0 })
	}
	big := w.known("big", func(d *sealed.Descriptor) { d.Config.Resources.CPUMillis = 1200 })
	if status, _, body := w.invoke(big); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	var live []string
	w.n.mu.Lock()
	for _, s := range w.n.fleet {
		live = append(live, string(s.rev.name))
	}
	w.n.mu.Unlock()
	for _, gone := range names[:2] {
		for _, l := range live {
			if l == gone {
				t.Errorf("%s is older and still there: %v", gone, live)
			}
		}
	}
	if len(live) != 3 {
		t.Errorf("live: %v", live)
	}
}

func TestBusySandboxesAreNoVictims(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{}, 1)
	w := newWorld(t, func(w *world) {
		w.work = func(http.ResponseWriter, *http.Request) { begun <- struct{}{}; <-release }
	})
	f := w.known("f", func(d *sealed.Descriptor) { d.Config.Resources.CPUMillis, d.Config.MaxInFlight = 1500, 1 })
	done := make(chan struct{})
	go func() { defer close(done); w.invoke(f) }()
	<-begun
	g := w.known("g", func(d *sealed.Descriptor) { d.Config.Resources.CPUMillis = 600 })
	if status, h, _ := w.invoke(g); status != 503 || h.Get(api.HeaderRefused) != string(api.CodeNoRoom) {
		t.Errorf("another function: %d %q", status, h.Get(api.HeaderRefused))
	}
	if status, h, _ := w.invoke(f); status != 429 || h.Get(api.HeaderRefused) != string(api.CodeBusy) {
		t.Errorf("its own second caller: %d %q", status, h.Get(api.HeaderRefused))
	}
	close(release)
	<-done
}

func TestTicketHoldsASlotForOneUse(t *testing.T) {
	w := newWorld(t)
	f := w.known("f", func(d *sealed.Descriptor) { d.Config.MaxInFlight, d.Config.Resources.CPUMillis = 1, 1500 })
	other := w.known("other")
	admit := func() string {
		t.Helper()
		status, _, body := w.do("POST", api.NodePathAdmit+f.target(), nil)
		var tk api.Ticket
		if err := json.Unmarshal([]byte(body), &tk); status != 200 || err != nil || tk.Expires <= time.Now().UnixMilli() {
			t.Fatalf("%d %s", status, body)
		}
		return tk.Ticket
	}
	tk := admit()
	if status, h, _ := w.do("POST", api.NodePathAdmit+f.target(), nil); status != 429 || h.Get(api.HeaderRefused) != string(api.CodeBusy) {
		t.Errorf("second ticket for one slot: %d", status)
	}
	if status, _, body := w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 1<<20), api.HeaderTicket, tk); status != 200 {
		t.Errorf("with the ticket: %d %.200s", status, body)
	}
	if status, h, _ := w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 10), api.HeaderTicket, tk); status != 429 || h.Get(api.HeaderRefused) == "" {
		t.Errorf("used twice: %d", status)
	}
	tk = admit()
	if status, _, _ := w.do("POST", api.NodePathInvoke+other.target(), w.message(other, 10), api.HeaderTicket, tk); status != 400 {
		t.Errorf("for another function: %d", status)
	}
	w.eventually("no slot is held", func() bool { _, _, q := w.held(); return q == 0 })
}

func TestUnclaimedTicketGivesItsSlotBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.known("f", func(d *sealed.Descriptor) { d.Config.MaxInFlight, d.Config.Resources.CPUMillis = 1, 1500 })
	w.do("POST", api.NodePathAdmit+f.target(), nil)
	began := time.Now()
	for time.Since(began) < ticketLife+30*time.Second {
		if _, _, q := w.held(); q == 0 {
			if took := time.Since(began); took < ticketLife-time.Second {
				t.Errorf("after %v already", took)
			}
			if status, _, body := w.invoke(f); status != 200 {
				t.Errorf("%d %s", status, body)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the slot is held for ever")
}

func TestDaemonsNextLifeAdoptsWhatRuns(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	msg := w.message(f, 10)
	w.do("POST", api.NodePathInvoke+f.target(), msg)
	was := w.fake.Sandboxes()
	gone := w.known("gone")
	w.invoke(gone)
	if err := os.Remove(filepath.Join(w.cfg.StateDir, "revisions", gone.digest.String()+revisionSuffix)); err != nil {
		t.Fatal(err)
	}
	w.crash()
	if now := w.fake.Sandboxes(); len(now) != 1 || now[0] != was[0] {
		t.Fatalf("sandboxes %v, the one to adopt is %v", now, was)
	}
	status, h, body := w.invoke(f)
	if status != 200 || h.Get(api.HeaderStart) != "warm" {
		t.Errorf("%d %s %s", status, h.Get(api.HeaderStart), body)
	}
	if r, n, _ := w.held(); r != n || r == (api.Resources{}) {
		t.Errorf("reserved %+v, needed %+v", r, n)
	}
	w.do("DELETE", api.NodePathFunctions+f.name, nil)
	w.eventually("an adopted one can be removed", func() bool { r, _, _ := w.held(); return r == api.Resources{} })
}

func TestDrainLetsInvocationsFinishAndRefusesNewOnes(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{}, 1)
	w := newWorld(t, func(w *world) {
		w.work = func(rw http.ResponseWriter, _ *http.Request) {
			begun <- struct{}{}
			<-release
			io.WriteString(rw, "finished")
		}
	})
	f := w.known("f")
	got := make(chan string, 1)
	go func() { _, _, b := w.invoke(f); got <- b }()
	<-begun
	drained := make(chan struct{})
	go func() { defer close(drained); w.n.Drain(context.Background()) }()
	w.eventually("new ones are refused", func() bool {
		_, h, _ := w.invoke(f)
		return h.Get(api.HeaderRefused) == string(api.CodeDraining)
	})
	select {
	case <-drained:
		t.Error("drained with an invocation under way")
	default:
	}
	close(release)
	if b := <-got; b != "finished" {
		t.Errorf("got %q", b)
	}
	<-drained
}

func TestEndOfASandboxEndsItsInvocation(t *testing.T) {
	begun := make(chan struct{}, 1)
	w := newWorld(t, func(w *world) {
		w.work = func(_ http.ResponseWriter, r *http.Request) { begun <- struct{}{}; <-r.Context().Done() }
	})
	f := w.known("f")
	type result struct {
		status int
		header http.Header
		body   string
	}
	got := make(chan result, 1)
	go func() { s, h, b := w.invoke(f); got <- result{s, h, b} }()
	<-begun
	id := w.fake.Sandboxes()[0]
	w.fake.OOM(id)
	w.fake.Kill(id)
	r := <-got
	if r.header.Get(api.HeaderRefused) != "" || r.status != 500 || !strings.Contains(r.body, "oom_killed") {
		t.Errorf("%+v", r)
	}
	w.eventually("its reservation is free", func() bool { r, _, q := w.held(); return q == 0 && r == api.Resources{} })
}

// containerd may be away for a moment, and be started again.
func TestRemovalThatFailedForAMomentGivesTheReservationBack(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	w.invoke(f)
	for range 2 {
		w.fake.Fail(runtimetest.OpRemove, errors.New("containerd is unavailable"))
	}
	w.n.removeAll()
	if left, _, _ := w.held(); left != (api.Resources{}) || len(w.fake.Sandboxes()) > 0 {
		t.Errorf("reserved %+v, sandboxes %v", left, w.fake.Sandboxes())
	}
}

func TestSandboxThatCannotBeRemovedKeepsItsReservation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.known("f")
	w.invoke(f)
	before, _, _ := w.held()
	for range removeTries {
		w.fake.Fail(runtimetest.OpRemove, errors.New("device or resource busy"))
	}
	w.n.removeAll()
	if after, _, _ := w.held(); after != before || before == (api.Resources{}) {
		t.Errorf("reserved %+v, before %+v", after, before)
	}
	w.crash() // the next life finds it
	w.n.removeAll()
}

func TestConfigIsChecked(t *testing.T) {
	good := DefaultConfig()
	good.ID, good.StateDir, good.RunDir, good.AgentPath = "n", t.TempDir(), "/tmp/x", "/bin/sh"
	good.Capacity = api.Resources{CPU: 1, Memory: 1, PIDs: 1}
	for what, change := range map[string]func(*Config){
		"no id":             func(c *Config) { c.ID = "" },
		"no state":          func(c *Config) { c.StateDir = "" },
		"no memory":         func(c *Config) { c.Capacity.Memory = 0 },
		"negative time":     func(c *Config) { c.IdleAfter = -1 },
		"long run path":     func(c *Config) { c.RunDir = "/" + strings.Repeat("r", 90) },
		"agent not a file":  func(c *Config) { c.AgentPath = "/tmp" },
		"agent not present": func(c *Config) { c.AgentPath = "/nowhere" },
	} {
		c := good
		change(&c)
		if _, err := New(c, Deps{}); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}
