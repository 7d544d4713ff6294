package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/pki"
)

// asking sends sealed invocations to a node itself, as its coordinator would for a
// task with needs, and everything else to where it was going.
type asking struct {
	as   func(pki.Role) http.RoundTripper
	node http.RoundTripper
	addr string
	rev  func(name string) string

	mu      sync.Mutex
	needs   string
	refused string // by the last reply
}

func (a *asking) RoundTrip(r *http.Request) (*http.Response, error) {
	name, ok := strings.CutPrefix(r.URL.Path, api.GatewayPathInvoke)
	if !ok {
		return http.DefaultTransport.RoundTrip(r)
	}
	a.mu.Lock()
	needs := a.needs
	a.mu.Unlock()
	to := r.Clone(r.Context())
	to.URL = &url.URL{Scheme: "https", Host: a.addr, Path: api.NodePathInvoke + name, RawQuery: a.rev(name)}
	to.Host = a.addr
	to.Header.Set(api.HeaderNeeds, needs)
	resp, err := a.node.RoundTrip(to)
	if err == nil {
		a.mu.Lock()
		a.refused = resp.Header.Get(api.HeaderRefused)
		a.mu.Unlock()
	}
	return resp, err
}

// asCoordinator is a cluster whose callers go to node-1 itself, as a coordinator
// does for a task.
func (c *cluster) asCoordinator(t *testing.T, fn api.FunctionName) (*cluster, *asking) {
	t.Helper()
	ca, err := pki.Load(filepath.Join(c.State(), "coordinator", enrol.CADir))
	if err != nil {
		t.Fatal(err)
	}
	as := func(role pki.Role) http.RoundTripper {
		key, cert, err := ca.Issue(role, "other-1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		id, err := pki.NewIdentity(key, cert, ca.CertificatePEM())
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{TLSClientConfig: pki.ClientConfig(id, pki.RoleNode, pki.AnyID)}
		t.Cleanup(tr.CloseIdleConnections)
		return tr
	}
	c.must(t, fn, "/", "the node is told of the revision")
	a := &asking{as: as, node: as(pki.RoleCoordinator), addr: c.part(t, "node-1").flag("listen"), rev: func(string) string {
		st, err := c.client.Describe(t.Context(), fn)
		if err != nil {
			t.Error(err)
		}
		return fmt.Sprintf("rev=%s&seq=%d", st.Revision, st.Sequence)
	}}
	direct := *c
	if direct.client, err = client.New(client.Config{Gateway: c.gateway, Identity: c.id, Pins: c.pins, Transport: a}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(direct.client.Close)
	return &direct, a
}

// ask has all that is sent from now on need n.
func (a *asking) ask(t *testing.T, n api.Needs) {
	t.Helper()
	b, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.needs = string(b)
}

// TestNeedsAreWhatTheKernelEnforces sends tasks with needs of their own to a real
// node: their numbers are the sandbox's limits, not the function's.
func TestNeedsAreWhatTheKernelEnforces(t *testing.T) {
	c := up(t, 1)
	fn := c.deploy(t, "asker") // 16 MiB of /tmp, 128 processes and threads
	direct, a := c.asCoordinator(t, fn)
	a.ask(t, api.Needs{Resources: api.Resources{CPU: 250, Memory: 48 << 20, PIDs: 24, Storage: 4 << 20}})
	for range 2 { // the second finds it warm
		count, reason, _ := strings.Cut(direct.must(t, fn, "/fill?path=/tmp/big", ""), " ")
		if n, err := strconv.Atoi(count); err != nil || n > 4<<20 || n < 3<<20 || !strings.Contains(reason, "no space left") {
			t.Errorf("4 MiB of storage took %q %q", count, reason)
		}
	}
	count, reason, _ := strings.Cut(direct.must(t, fn, "/fork", ""), ":")
	if n, err := strconv.Atoi(count); err != nil || n >= 24 || !strings.Contains(reason, "temporarily unavailable") {
		t.Errorf("24 pids gave %q processes: %q", count, reason)
	}
	ready := 0
	for _, s := range c.sandboxes(t, fn) {
		if s.State == "ready" || s.State == "frozen" {
			ready++
		}
	}
	if ready != 2 {
		t.Errorf("%d sandboxes, want that of the descriptor and that for the needs: %+v", ready, c.sandboxes(t, fn))
	}
	// The daemon's next life knows what it was made for.
	ids := func() map[string]bool {
		all := map[string]bool{}
		for _, s := range c.sandboxes(t, fn) {
			if s.State == "ready" || s.State == "frozen" {
				all[s.ID] = true
			}
		}
		return all
	}
	before := ids()
	c.kill(t, "node-1", syscall.SIGKILL)
	c.served(t, "node-1")
	if resp, _, err := direct.invoke(t, fn, client.Request{}); err != nil || resp.Meta.Start != "warm" {
		t.Errorf("after the daemon was killed: %+v, %v", resp, err)
	}
	if after := ids(); !maps.Equal(before, after) {
		t.Errorf("sandboxes %v, before it was killed %v", after, before)
	}
	// By the descriptor as ever.
	count, _, _ = strings.Cut(c.must(t, fn, "/fill?path=/tmp/big", ""), " ")
	if n, err := strconv.Atoi(count); err != nil || n < 15<<20 {
		t.Errorf("16 MiB without needs took %q", count)
	}
	// What nobody here gives.
	for what, n := range map[string]api.Needs{
		"port": {Ports: []api.PortNeed{{Protocol: "tcp", Count: 1}}}, "egress": {Resources: api.Resources{Egress: 1}}, "scratch": {Resources: api.Resources{Scratch: 1}},
	} {
		a.ask(t, n)
		_, _, err := direct.invoke(t, fn, client.Request{})
		a.mu.Lock()
		if err == nil || api.CodeOf(err) != api.CodeNoRoom || a.refused != string(api.CodeNoRoom) {
			t.Errorf("%s: %v, refused with %q", what, err, a.refused)
		}
		a.mu.Unlock()
	}
	// A task runs once, whoever sealed it again.
	a.ask(t, api.Needs{Task: strings.Repeat("5a", 16)})
	direct.must(t, fn, "/", "once")
	if _, _, err := direct.invoke(t, fn, client.Request{}); api.CodeOf(err) != api.CodeReplay {
		t.Errorf("the same task again: %v", err)
	}
	c.kill(t, "node-1", syscall.SIGKILL)
	c.served(t, "node-1")
	if _, _, err := direct.invoke(t, fn, client.Request{}); api.CodeOf(err) != api.CodeReplay {
		t.Errorf("the same task, after the daemon was killed: %v", err)
	}
	// No other role gets as far.
	a.node = a.as(pki.RoleNode)
	if _, _, err := direct.invoke(t, fn, client.Request{}); err == nil || !strings.Contains(err.Error(), "tls") && !strings.Contains(err.Error(), "certificate") {
		t.Errorf("from a node: %v", err)
	}
	idleAgain(t, c)
}
