package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// TestThreeMachines runs a cluster of three nodes, each with a network and a
// containerd of its own, and takes parts of it away.
func TestThreeMachines(t *testing.T) {
	needTools(t, "ctr", "ip", "iptables", "nsenter", "tcpdump")
	m := newMachines(t, 3)
	fn := m.deploy(t, "three", small)
	if !t.Run("load that one machine cannot hold spreads", func(t *testing.T) { m.spreads(t, fn) }) {
		return
	}
	t.Run("nothing readable crosses the network", m.unreadable)
	t.Run("a full machine refuses and the next one serves", m.refuses)
	t.Run("a killed daemon costs honest errors only, and keeps its sandboxes", func(t *testing.T) { m.killed(t, fn) })
	t.Run("a daemon killed during a cold start leaves nothing", m.killedEarly)
	t.Run("a machine that is cut off comes back", func(t *testing.T) { m.cutOff(t, fn) })
	if err := m.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	for _, x := range m.nodes[1:] {
		waitFor(t, 15*time.Second, x.id+" to hold its pool alone", func() error {
			if h := m.steady(t, x); h.tasks != 1 {
				return fmt.Errorf("%+v", h)
			}
			return nil
		})
	}
}

// small is a function of which two fit on one machine, with one invocation at a
// time in each.
func small(d *client.Deployment) {
	d.Resources.CPU, d.Resources.Memory, d.MaxInFlight, d.Idle = 500, 32<<20, 1, 2*time.Minute
}

func on(x *machine) func(*client.Deployment) {
	return func(d *client.Deployment) { d.Constraints = map[string]string{"machine": x.id} }
}

// spreads makes as many calls at once as there is room for, and a few more.
func (m *machines) spreads(t *testing.T, fn api.FunctionName) {
	by := m.fill(t, fn)
	t.Logf("served by %v", by)
	// More at once than fit anywhere wait for their turn.
	tally := m.barrage(t, fn, 12, 2*time.Second)
	if tally.wrong > 0 || len(tally.errors) > 0 || tally.ok == 0 {
		t.Errorf("twice as much as fits: %v", tally)
	}
	t.Logf("twice as much as fits: %v", tally)
}

// fill makes six calls that take their time: two fit on each machine, so that
// each has two sandboxes of fn afterwards.
func (m *machines) fill(t *testing.T, fn api.FunctionName) map[string]int {
	t.Helper()
	var mu sync.Mutex
	by := map[string]int{}
	var wg sync.WaitGroup
	for range 3 * fitOnOne {
		wg.Add(1)
		go func() {
			defer wg.Done()
			resp, body, err := m.invoke(t, fn, client.Request{Path: "/sleep", Query: "ms=3000"})
			if err != nil || resp.Status != http.StatusOK {
				t.Errorf("%v %s", err, body)
				return
			}
			mu.Lock()
			by[resp.Meta.Node]++
			mu.Unlock()
		}()
	}
	wg.Wait()
	for _, x := range m.nodes[1:] {
		if by[x.id] != fitOnOne {
			t.Fatalf("served by %v: %s has room for %d", by, x.id, fitOnOne)
		}
	}
	return by
}

// unreadable records what passes between the machines while a function with
// secrets is deployed, started and called, and looks for them.
func (m *machines) unreadable(t *testing.T) {
	h := &hunt{t: t, c: m.cluster, can: newCanaries(t), dial: m.net.dialer(1)}
	capture := startCapture(t, m.net.path(0), "br0", "")
	fn := h.deploy()
	h.call(fn, "cold")
	h.large(fn)
	h.large(fn)
	h.streamed(fn)
	h.logs(fn)
	h.search(fn)
	h.searchTraffic(capture)
	h.report()
	if err := m.client.Remove(t.Context(), fn); err != nil {
		t.Error(err)
	}
}

// refuses fills a machine behind the coordinator's back, so that the
// coordinator offers it what it cannot take.
func (m *machines) refuses(t *testing.T) {
	fn := m.deploy(t, "refused", small)
	resp, _, err := m.invoke(t, fn, client.Request{})
	if err != nil {
		t.Fatal(err)
	}
	x := m.byID(t, resp.Meta.Node)
	filler := m.deploy(t, "filler", small, on(x))
	ctx := t.Context()
	busy := make(chan error, 1)
	go func() {
		resp, err := m.client.Invoke(ctx, filler, client.Request{Path: "/sleep", Query: "ms=4000"})
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		busy <- err
	}()
	waitFor(t, 15*time.Second, "the machine to be half full", func() error {
		have, err := m.members(ctx)
		if load := have[x.id].Load; err == nil && (load.InFlight != 1 || load.Warm[api.RevisionKey(m.revision(t, fn))] != 1) {
			err = fmt.Errorf("load %+v", load)
		}
		return err
	})
	other := m.otherCoordinator(t)
	before := m.counter(t, "faasd_sec_node_refusals_total")
	st := m.describe(t, fn)
	ticket, err := other.take(ctx, x, st)
	if err != nil {
		t.Fatal(err)
	}
	resp, body, err := m.invoke(t, fn, client.Request{Body: strings.NewReader("served elsewhere")})
	if err != nil {
		t.Fatal(err)
	}
	if refused := m.counter(t, "faasd_sec_node_refusals_total") - before; refused != 1 || resp.Meta.Node == x.id || string(body) != "served elsewhere" {
		t.Errorf("%v refusals, served by %s with %q; the full machine is %s", refused, resp.Meta.Node, body, x.id)
	}
	other.giveBack(ctx, x, st, ticket)
	if err := <-busy; err != nil {
		t.Error(err)
	}
	for _, f := range []api.FunctionName{fn, filler} {
		if err := m.client.Remove(t.Context(), f); err != nil {
			t.Error(err)
		}
	}
}

// killed ends a node's daemon under load, as a crash does.
func (m *machines) killed(t *testing.T, fn api.FunctionName) {
	x := m.nodes[2]
	m.fill(t, fn)
	load := m.startBarrage(t, fn, 3*fitOnOne)
	waitFor(t, 20*time.Second, x.id+" to serve", func() error {
		if load.served(x.id) < 20 {
			return errors.New("not yet")
		}
		return nil
	})
	before := m.steady(t, x)
	x.node.kill()
	at := time.Now()
	if gone := m.waitNodes(t, 20*time.Second, 2); gone > 0 {
		t.Logf("the mesh noticed after %v", time.Since(at))
	}
	tally := load.stop()
	t.Logf("while the daemon died: %v", tally)
	m.honest(t, tally)
	if tally := m.barrage(t, fn, 2*fitOnOne, time.Second); len(tally.errors) > 0 || tally.wrong > 0 || tally.by[x.id] > 0 || tally.ok == 0 {
		t.Errorf("without %s: %v", x.id, tally)
	}
	if h := m.held(t, x); h != before {
		t.Errorf("sandboxes do not outlive the daemon: %+v before, %+v after", before, h)
	}

	m.startNode(t, x)
	t.Logf("the mesh was whole %v after the daemon served again", m.waitNodes(t, 40*time.Second, 3))
	if h := m.steady(t, x); h != before {
		t.Errorf("sandboxes were not adopted: %+v before, %+v after", before, h)
	}
	load = m.startBarrage(t, fn, 3*fitOnOne)
	waitFor(t, 20*time.Second, x.id+" to serve again", func() error {
		if load.served(x.id) < 20 {
			return errors.New("not yet")
		}
		return nil
	})
	tally = load.stop()
	if len(tally.errors) > 0 || tally.wrong > 0 || tally.cold[x.id] > 0 {
		t.Errorf("after the daemon came back: %v", tally)
	}
	t.Logf("after the daemon came back: %v", tally)
	if h := m.held(t, x); h != before {
		t.Errorf("%+v before, %+v in the end", before, h)
	}
}

// killedEarly ends the daemon at several moments of a cold start.
func (m *machines) killedEarly(t *testing.T) {
	x := m.nodes[1]
	fn := m.deploy(t, "early", small, on(x))
	for _, after := range []time.Duration{20 * time.Millisecond, 90 * time.Millisecond, 180 * time.Millisecond, 300 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		done := make(chan error, 1)
		go func() {
			resp, err := m.client.Invoke(ctx, fn, client.Request{Body: strings.NewReader("x")})
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			done <- err
		}()
		time.Sleep(after) // this moment is the test
		x.node.kill()
		m.startNode(t, x)
		err := <-done
		cancel()
		if code := api.CodeOf(err); err != nil && !slices.Contains(honestCodes, code) {
			t.Errorf("killed after %v: %v", after, err)
		}
		t.Logf("killed after %v: the call ended with %q; held %+v", after, api.CodeOf(err), m.held(t, x))
		m.waitNodes(t, 40*time.Second, 3)
		if err := m.eventually(t, fn, x.id); err != nil {
			t.Fatalf("killed after %v: %v", after, err)
		}
		m.steady(t, x)
		// Another revision, so that the next start is cold again.
		m.deploy(t, "early", small, on(x), func(d *client.Deployment) { d.Exec = 20*time.Second + after })
	}
	if err := m.client.Remove(t.Context(), fn); err != nil {
		t.Error(err)
	}
}

// cutOff drops every packet of one machine under load, and lets them pass again.
func (m *machines) cutOff(t *testing.T, fn api.FunctionName) {
	x := m.nodes[3]
	m.fill(t, fn)
	load := m.startBarrage(t, fn, 3*fitOnOne)
	waitFor(t, 20*time.Second, x.id+" to serve", func() error {
		if load.served(x.id) < 20 {
			return errors.New("not yet")
		}
		return nil
	})
	m.net.cut(t, x.i)
	at := time.Now()
	mended := false
	defer func() {
		if !mended {
			m.net.mend(t, x.i)
		}
	}()
	m.waitNodes(t, 20*time.Second, 2)
	t.Logf("the mesh noticed after %v", time.Since(at))
	served := load.ok()
	waitFor(t, 20*time.Second, "the others to serve", func() error {
		if load.ok() < served+50 {
			return errors.New("not yet")
		}
		return nil
	})
	// Calls that were on their way there must end without help from outside.
	tally := load.stop()
	t.Logf("while it was cut off: %v; all calls ended after %v", tally, time.Since(at))
	m.honest(t, tally)
	if tally := m.barrage(t, fn, 2*fitOnOne, time.Second); len(tally.errors) > 0 || tally.wrong > 0 || tally.by[x.id] > 0 || tally.ok == 0 {
		t.Errorf("without %s: %v", x.id, tally)
	}
	m.net.mend(t, x.i)
	mended = true
	t.Logf("the mesh was whole again %v after the network was", m.waitNodes(t, 75*time.Second, 3)) // seeds are joined again every 15 to 30 s
	only := m.deploy(t, "only", small, on(x))
	if err := m.eventually(t, only, x.id); err != nil {
		t.Error(err)
	}
	if err := m.client.Remove(t.Context(), only); err != nil {
		t.Error(err)
	}
	tally = m.barrage(t, fn, 3*fitOnOne, 2*time.Second)
	if len(tally.errors) > 0 || tally.wrong > 0 || tally.ok == 0 {
		t.Errorf("after it came back: %v", tally)
	}
	t.Logf("after it came back: %v", tally)
}

// honestCodes say that a call failed because a part of the cluster did.
var honestCodes = []api.Code{api.CodeNodeLost, api.CodeUnavailable}

func (m *machines) honest(t *testing.T, tally *tally) {
	t.Helper()
	if tally.wrong > 0 {
		t.Errorf("%d wrong answers", tally.wrong)
	}
	for code, n := range tally.errors {
		if !slices.Contains(honestCodes, code) {
			t.Errorf("%d calls failed with %s: %s", n, code, tally.example[code])
		}
	}
}

func (m *machines) byID(t *testing.T, id string) *machine {
	t.Helper()
	for _, x := range m.nodes[1:] {
		if x.id == id {
			return x
		}
	}
	t.Fatalf("no machine %q", id)
	return nil
}

func (m *machines) describe(t *testing.T, fn api.FunctionName) api.FunctionStatus {
	t.Helper()
	st, err := m.client.Describe(t.Context(), fn)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (m *machines) revision(t *testing.T, fn api.FunctionName) string {
	t.Helper()
	return m.describe(t, fn).Revision
}

// eventually calls fn until machine id answers.
func (m *machines) eventually(t *testing.T, fn api.FunctionName, id string) error {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, body, err := m.invoke(t, fn, client.Request{Body: strings.NewReader("again")})
		switch {
		case err == nil && resp.Meta.Node == id && string(body) == "again":
			return nil
		case err == nil:
			return fmt.Errorf("served by %s: %q", resp.Meta.Node, body)
		case time.Now().After(deadline):
			return fmt.Errorf("%s does not serve: %w", id, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
