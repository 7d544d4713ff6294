package client_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
)

// nodeGateway stands for a node's gateway before the cluster's agent; it answers
// with code where that is not empty. own counts what it was asked.
func (c *cluster) nodeGateway(code *atomic.Value, own *atomic.Int64) string {
	c.t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		own.Add(1)
		if !strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
			c.t.Errorf("%s %s went to a node", r.Method, r.URL.Path)
		}
		if k, ok := code.Load().(api.Code); ok && k != "" {
			io.Copy(io.Discard, r.Body)
			clienttest.Fail(w, api.Errorf(k, "no"))
			return
		}
		c.Invoke(w, r)
	}))
	c.t.Cleanup(srv.Close)
	return srv.URL
}

func echoed(t *testing.T, cl *client.Client) error {
	t.Helper()
	res, err := cl.Invoke(t.Context(), fn, client.Request{Body: strings.NewReader("hello")})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	return nil
}

func TestViaServesInvocationsAndTheGatewayTheRest(t *testing.T) {
	c, _, _ := deployed(t)
	var code atomic.Value
	var atNode, atGateway atomic.Int64
	url := c.nodeGateway(&code, &atNode)
	c.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
			atGateway.Add(1)
		}
		return false
	}
	for _, transport := range []http.RoundTripper{nil, client.NewTransport()} { // both ways to send
		cl := c.client(identity(t), firstUse, func(cfg *client.Config) { cfg.Via, cfg.Transport = url, transport })
		atNode.Store(0)
		if err := echoed(t, cl); err != nil || atNode.Load() != 1 || atGateway.Load() != 0 {
			t.Errorf("%v; %d at the node, %d at the gateway", err, atNode.Load(), atGateway.Load())
		}
	}
}

func TestWhatViaDoesNotTakeGoesToTheGateway(t *testing.T) {
	c, _, _ := deployed(t)
	var code atomic.Value
	var atNode atomic.Int64
	url := c.nodeGateway(&code, &atNode)
	cl := c.client(identity(t), firstUse, func(cfg *client.Config) { cfg.Via, cfg.Transport = url, nil })
	for _, k := range []api.Code{api.CodeMisdirected, api.CodeBusy, api.CodeNoRoom, api.CodeDraining, api.CodeStaleRevision} {
		code.Store(k)
		if err := echoed(t, cl); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	// After these an agent may have had the message, or no gateway would take it.
	for _, k := range []api.Code{api.CodeFunctionCrashed, api.CodeDeadline, "sender", "window"} {
		code.Store(k)
		wantCode(t, echoed(t, cl), k)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	for _, transport := range []http.RoundTripper{nil, client.NewTransport()} {
		gone := c.client(identity(t), firstUse, func(cfg *client.Config) { cfg.Via, cfg.Transport = "http://"+ln.Addr().String(), transport })
		if err := echoed(t, gone); err != nil {
			t.Errorf("a node that is gone: %v", err)
		}
	}
}
