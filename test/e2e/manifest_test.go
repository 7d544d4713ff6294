package e2e

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// TestSealedManifests is the way of a manifest through a working cluster: bounds
// at deployment, overrides within and beyond them, where a task goes and why, and
// what is left of its needs afterwards.
func TestSealedManifests(t *testing.T) {
	needTools(t, "tcpdump")
	c := up(t, 2, func(cfg *local.Config) { cfg.Labels = []string{"zone=a", "zone=b"} })
	fn := c.deploy(t, "bounded", func(d *client.Deployment) {
		d.AnyCaller = true
		d.Callers = nil
		d.Bounds = &manifest.Bounds{
			Default: manifest.Needs{MemoryBytes: 80 << 20},
			Max:     manifest.Max{MemoryBytes: 256 << 20, CPUMillis: 2000, IngressBPS: 1e9, EgressBPS: 1 << 50, Priority: 9, Attempts: 3},
			Overridable: []manifest.Field{manifest.FieldCPU, manifest.FieldMemory, manifest.FieldIngress, manifest.FieldEgress, manifest.FieldConstraints, manifest.FieldArchitectures,
				manifest.FieldAntiAffinity, manifest.FieldDeadline, manifest.FieldPriority, manifest.FieldRetry},
		}
	})
	for name, f := range map[string]func(*testing.T, *cluster, api.FunctionName){
		"Overrides": overrides, "Labels": labels, "Duplicate": duplicateTask, "Strangers": strangersManifest, "Forgotten": manifestForgotten,
	} {
		t.Run(name, func(t *testing.T) { f(t, c, fn) })
	}
	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// needs calls the function with needs of its own.
func (c *cluster) needs(t testing.TB, fn api.FunctionName, n *client.Needs) (*client.Response, error) {
	t.Helper()
	resp, body, err := c.invoke(t, fn, client.Request{Path: "/", Body: strings.NewReader("hello"), Needs: n})
	if err == nil && string(body) != "hello" {
		t.Errorf("the echo is %q", body)
	}
	return resp, err
}

func overrides(t *testing.T, c *cluster, fn api.FunctionName) {
	if _, err := c.needs(t, fn, nil); err != nil {
		t.Fatalf("defaults: %v", err)
	}
	if _, err := c.needs(t, fn, &client.Needs{Needs: manifest.Needs{MemoryBytes: 120 << 20, CPUMillis: 700}, Deadline: time.Now().Add(time.Minute), Priority: 3}); err != nil {
		t.Fatalf("within the bounds: %v", err)
	}
	// A large body is admitted with its needs before it is sent.
	large := strings.Repeat("large ", 100<<10)
	_, body, err := c.invoke(t, fn, client.Request{Path: "/", Body: strings.NewReader(large), Needs: &client.Needs{Needs: manifest.Needs{MemoryBytes: 130 << 20}}})
	if err != nil || string(body) != large {
		t.Errorf("a large body: %d bytes, %v", len(body), err)
	}
	for field, n := range map[string]manifest.Needs{
		"memory":  {MemoryBytes: 257 << 20},
		"cpu":     {CPUMillis: 2001},
		"pids":    {PIDs: 4000},
		"storage": {StorageBytes: 1 << 20},
	} {
		_, err := c.needs(t, fn, &client.Needs{Needs: n})
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeExceedsBounds || e.Field != field || e.Remedy == "" {
			t.Errorf("%s beyond the bounds: %v", field, err)
		}
	}
	if _, err := c.needs(t, fn, &client.Needs{Deadline: time.Now().Add(-time.Second)}); api.CodeOf(err) != api.CodeDeadline {
		t.Errorf("a deadline that was: %v", err)
	}
}

func labels(t *testing.T, c *cluster, fn api.FunctionName) {
	for zone, node := range map[string]string{"a": "node-1", "b": "node-2"} {
		for range 3 {
			n := &client.Needs{Needs: manifest.Needs{Constraints: []manifest.Requirement{{Key: "zone", Op: manifest.Equals, Value: zone}}}}
			resp, err := c.needs(t, fn, n)
			if err != nil || resp.Meta.Node != node {
				t.Fatalf("zone %s: %+v, %v, want %s", zone, resp, err, node)
			}
			p, err := c.client.Placement(t.Context(), n.Task.String())
			if err != nil || p.Node != node || p.Function != fn {
				t.Errorf("placement: %+v, %v", p, err)
			}
		}
	}
	n := &client.Needs{Needs: manifest.Needs{Constraints: []manifest.Requirement{{Key: "zone", Op: manifest.Equals, Value: "nowhere"}}}, Deadline: time.Now().Add(500 * time.Millisecond)}
	if _, err := c.needs(t, fn, n); api.CodeOf(err) != api.CodeNoRoom {
		t.Errorf("nowhere: %v", err)
	}
	p, err := c.client.Placement(t.Context(), n.Task.String())
	if err != nil || p.Node != "" || p.Code != api.CodeNoRoom || len(p.Nodes) != 2 || p.Nodes[0].Outcome != api.OutcomeUnfit || p.Nodes[0].Reason != "label" {
		t.Errorf("why nowhere: %+v, %v", p, err)
	}
	other := c.stranger(t, c.transport)
	if _, err := other.client.Placement(t.Context(), n.Task.String()); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("a stranger asks why: %v", err)
	}
}

func duplicateTask(t *testing.T, c *cluster, fn api.FunctionName) {
	n := &client.Needs{Priority: 1}
	if _, err := c.needs(t, fn, n); err != nil {
		t.Fatal(err)
	}
	if n.Task.IsZero() {
		t.Fatal("the task's id is not told")
	}
	// Sealed anew, and so no replay: it is the task that is known.
	if _, err := c.needs(t, fn, n); api.CodeOf(err) != api.CodeDuplicateTask {
		t.Errorf("the same task again: %v", err)
	}
}

func strangersManifest(t *testing.T, c *cluster, fn api.FunctionName) {
	other := c.stranger(t, c.transport)
	if _, err := other.needs(t, fn, nil); err != nil {
		t.Fatalf("anybody may call it: %v", err)
	}
	if _, err := other.needs(t, fn, &client.Needs{Priority: 1}); api.CodeOf(err) != api.Code(sealed.CodeSender) {
		t.Errorf("the manifest of one who is no initiator: %v", err)
	}
	// What tasks need is told to nobody but the pinned opener.
	another := c.stranger(t, c.transport)
	if err := another.pins.SetOpener(c.gateway, c.id.SigningKey()); err != nil {
		t.Fatal(err)
	}
	if _, err := another.needs(t, fn, &client.Needs{Priority: 1}); api.CodeOf(err) != api.CodeForbidden || !strings.Contains(err.Error(), "manifest opener") {
		t.Errorf("another opener than the pinned one: %v", err)
	}
}

// manifestForgotten hunts for what manifests said: in all traffic, and in the
// memory of the coordinator, the opener and the key broker after placing.
func manifestForgotten(t *testing.T, c *cluster, fn api.FunctionName) {
	can := newCanaries(t)
	h := &hunt{t: t, c: c, can: can, dial: (&net.Dialer{}).DialContext}
	h.marks()
	capture := startCapture(t, "", "lo", h.ports())
	// Numbers that a node can give, and some that none can: both are forgotten.
	memory := uint64(90<<20 + rand.IntN(100<<20))
	egress := uint64(1<<49 + rand.Int64N(1<<49))
	all := append(forms("label's key", can.header), forms("label's value", can.secret)...)
	all = append(all, forms("planted", can.planted)...)
	all = append(all, needle{"memory", "decimal", []byte(`"memory":` + strconv.FormatUint(memory, 10))}, needle{"egress", "decimal", []byte(strconv.FormatUint(egress, 10))},
		needle{"egress", "little endian", binary.LittleEndian.AppendUint64(nil, egress)}, needle{"egress", "big endian", binary.BigEndian.AppendUint64(nil, egress)})
	find, err := newFinderOf(all, 8)
	if err != nil {
		t.Fatal(err)
	}
	differs := []manifest.Requirement{{Key: can.header, Op: manifest.Differs, Value: can.secret}}
	for range 20 {
		if _, err := c.needs(t, fn, &client.Needs{Needs: manifest.Needs{MemoryBytes: memory, Constraints: differs}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.needs(t, fn, &client.Needs{Needs: manifest.Needs{IngressBPS: 1e6, EgressBPS: egress, Constraints: differs}, Deadline: time.Now().Add(time.Second)}); err == nil {
		t.Error("no node has so much")
	}
	// A large request is under way, and its needs are not there any more either.
	large := make(chan error, 1)
	go func() {
		n := &client.Needs{Needs: manifest.Needs{MemoryBytes: memory, Constraints: differs}}
		_, body, err := c.invoke(t, fn, client.Request{Path: "/sleep", Query: "ms=8000", Body: strings.NewReader(strings.Repeat("x", 600<<10)), Needs: n})
		if err == nil && string(body) != "slept" {
			err = fmt.Errorf("%.40q", body)
		}
		large <- err
	}()
	waitFor(t, 5*time.Second, "the large request to be under way", func() error {
		if !slices.ContainsFunc(c.sandboxes(t, fn), func(s api.SandboxStatus) bool { return s.InFlight > 0 }) {
			return errors.New("not yet")
		}
		return nil
	})
	search := func(roles ...string) sightings {
		seen := sightings{}
		procs, err := procsOf(h.ours...)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range procs {
			if !slices.Contains(roles, p.role) {
				continue
			}
			n, err := find.memory(p.pid, func(n needle, where string) { seen.note(n, p.String()+": "+where) })
			if err != nil || n < 1<<20 {
				t.Errorf("%v: %d bytes searched, %v", p, n, err)
			}
		}
		return seen
	}
	// The opener erases within a tenth of a second.
	waitFor(t, 5*time.Second, "the needs to be forgotten", func() error {
		if seen := search("coordinator", "manifest-opener", "keybroker"); len(seen) > 0 {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
	select {
	case err := <-large:
		t.Errorf("the large request ended too soon: %v", err)
	default:
		if err := <-large; err != nil {
			t.Error(err)
		}
	}
	conn, err := h.dial(t.Context(), "tcp", strings.TrimPrefix(c.Gateway(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(conn, can.planted)
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	capture.stop(t, can.planted)
	seen := sightings{}
	packets, flows, size, err := capture.search(find, seen.note)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("traffic: %d packets, %d directions of connections, %d bytes", packets, flows, size)
	if len(seen["planted"]) < 2 {
		t.Errorf("the search does not find a planted packet: %v", seen)
	}
	if delete(seen, "planted"); len(seen) > 0 {
		t.Errorf("in clear on the network: %v", seen)
	}
	if size < 40<<10 {
		t.Errorf("only %d bytes were captured", size)
	}
}

// TestWaitingList fills a small node and looks at those that wait: who goes
// first, who sees them, and who ends their wait.
func TestWaitingList(t *testing.T) {
	c := up(t, 1, func(cfg *local.Config) { cfg.CPU, cfg.Memory = "600m", "256Mi" })
	fn := c.deploy(t, "queued", func(d *client.Deployment) {
		d.MaxInFlight = 1
		d.Bounds = &manifest.Bounds{Max: manifest.Max{Priority: 9}, Overridable: []manifest.Field{manifest.FieldPriority}}
	})
	type done struct {
		err error
		at  time.Time
	}
	start := func(priority int, path, query string) (*client.Needs, chan done) {
		id, err := sealed.NewID(crand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		n, out := &client.Needs{Priority: priority, Task: id}, make(chan done, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			resp, err := c.client.Invoke(ctx, fn, client.Request{Path: path, Query: query, Needs: n})
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				err = errors.Join(err, resp.Body.Close())
			}
			out <- done{err, time.Now()}
		}()
		return n, out
	}
	waits := func(n *client.Needs) error {
		list, err := c.client.Waiting(t.Context())
		if err == nil && !slices.ContainsFunc(list, func(w api.WaitingTask) bool { return w.ID == n.Task.String() }) {
			err = fmt.Errorf("%s is not in %v", n.Task, list)
		}
		return err
	}
	c.must(t, fn, "/", "it runs")
	_, first := start(0, "/sleep", "ms=3000")
	eventually(t, "the slot is taken", func() bool {
		s := c.sandboxes(t, fn)
		list, err := c.client.Waiting(t.Context())
		return err == nil && len(list) == 0 && len(s) == 1 && s[0].InFlight == 1
	})
	low, lowDone := start(1, "/sleep", "ms=300")
	waitFor(t, 5*time.Second, "the low one to wait", func() error { return waits(low) })
	high, highDone := start(9, "/sleep", "ms=300")
	waitFor(t, 5*time.Second, "the high one to wait", func() error { return waits(high) })
	gone, goneDone := start(5, "/", "")
	waitFor(t, 5*time.Second, "the third to wait", func() error { return waits(gone) })
	waitFor(t, 5*time.Second, "the order of those that wait", func() error {
		list, err := c.client.Waiting(t.Context())
		if err == nil && (len(list) != 3 || list[0].ID != high.Task.String() || list[2].ID != low.Task.String() || list[0].Priority != 9) {
			err = fmt.Errorf("%+v", list)
		}
		return err
	})
	if err := c.stranger(t, c.transport).client.Cancel(t.Context(), gone.Task.String()); api.CodeOf(err) != api.CodeForbidden {
		t.Errorf("a stranger cancels: %v", err)
	}
	if err := c.client.Cancel(t.Context(), gone.Task.String()); err != nil {
		t.Errorf("cancel: %v", err)
	}
	if d := <-goneDone; api.CodeOf(d.err) != api.CodeCancelled {
		t.Errorf("the cancelled one: %v", d.err)
	}
	f, hi, lo := <-first, <-highDone, <-lowDone
	if err := errors.Join(f.err, hi.err, lo.err); err != nil {
		t.Fatal(err)
	}
	if !hi.at.Before(lo.at) {
		t.Errorf("the low one ended %v before the high one", hi.at.Sub(lo.at))
	}
}
