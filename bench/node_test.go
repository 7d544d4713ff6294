package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

const exposition = `# HELP faasd_sec_node_sandboxes Sandboxes that exist.
faasd_sec_node_sandboxes 1
faasd_sec_node_sandboxes_frozen 0
faasd_sec_node_pool_depth 2
faasd_sec_node_pool_target 3
faasd_sec_node_pool_creating 0
faasd_sec_node_pool_fill_seconds_count 17
faasd_sec_invocations_total{code="ok"} 1.5e+03
`

func TestANodesStateIsReadFromItsMetrics(t *testing.T) {
	text := exposition
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }))
	defer s.Close()
	w := nodeWatch{s.URL}
	got, err := w.state(t.Context())
	if want := (nodeState{sandboxes: 1, depth: 2, target: 3, made: 17}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if n, err := w.direct(t.Context()); err != nil || n != 1500 {
		t.Errorf("served %d, %v", n, err)
	}
	text = strings.ReplaceAll(exposition, "pool_depth", "pool_length")
	if _, err := w.state(t.Context()); err == nil || !strings.Contains(err.Error(), "pool_depth") {
		t.Errorf("without a metric: %v", err)
	}
}

func TestAtRest(t *testing.T) {
	for _, c := range []struct {
		s    nodeState
		want bool
	}{
		{nodeState{}, true}, // no pool
		{nodeState{sandboxes: 1}, false},
		{nodeState{target: 1}, false},
		{nodeState{target: 1, depth: 1}, true},
		{nodeState{target: 9, depth: 2}, true}, // busy machines keep the least
		{nodeState{target: 9, depth: 1}, false},
		{nodeState{target: 2, depth: 2, creating: 1}, false},
	} {
		if got := c.s.atRest(); got != c.want {
			t.Errorf("%+v at rest is %v", c.s, got)
		}
	}
	ok := twice(nodeState.atRest)
	for i, want := range []bool{false, true, true} {
		if got := ok(nodeState{}); got != want {
			t.Errorf("look %d: %v", i+1, got)
		}
	}
	if ok(nodeState{creating: 1}) || ok(nodeState{}) {
		t.Error("a look at a busy pool did not begin anew")
	}
}

func TestWaitingForANodeEnds(t *testing.T) {
	w := nodeWatch{"http://127.0.0.1:1/metrics"}
	err := w.until(t.Context(), "something", time.Millisecond, 20*time.Millisecond, func(nodeState) bool { return true })
	if err == nil || !strings.Contains(err.Error(), "something") {
		t.Errorf("ended with %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.until(ctx, "something", time.Millisecond, time.Hour, func(nodeState) bool { return true }); err == nil {
		t.Error("went on after its context")
	}
}

func TestDaemonsFlags(t *testing.T) {
	p := process{args: []string{"/bin/node", "-ops-listen", "127.0.0.1:1", "-containerd=/x.sock", "-last"}}
	for name, want := range map[string]string{"-ops-listen": "127.0.0.1:1", "-containerd": "/x.sock", "-last": "", "-none": ""} {
		if got := p.flag(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestOwnFiguresAreThere(t *testing.T) {
	if ownCPU() <= 0 {
		t.Error("this process used no CPU time")
	}
	self := process{pid: os.Getpid()}
	for _, field := range []string{"Pss", "VmHWM"} {
		if v, err := self.memory(field); err != nil || v <= 0 {
			t.Errorf("%s: %v MiB, %v", field, v, err)
		}
	}
}
