package e2e

import (
	"bytes"
	"crypto/rand"
	"io"
	"testing"

	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// A caller of a node's gateway has its function's cold start made by the
// coordinator, and then goes to the node itself.
func TestNodesGatewayServesWhatItHosts(t *testing.T) {
	c := up(t, 1, func(cfg *local.Config) { cfg.Gateways = true })
	fn := c.deploy(t, "direct")
	direct, err := client.New(client.Config{Gateway: c.Gateway(), Via: c.NodeGateway(1), Identity: c.id, Pins: c.pins})
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	call := func(size int, stream bool) *client.Response {
		t.Helper()
		body := make([]byte, size)
		rand.Read(body)
		resp, err := direct.Invoke(t.Context(), fn, client.Request{Body: bytes.NewReader(body), Stream: stream})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%d bytes: %v, %d came back", size, err, len(got))
		}
		return resp
	}
	if resp := call(100, false); !fresh(resp.Meta.Start) {
		t.Errorf("the first call was %s", resp.Meta.Start)
	}
	for _, size := range []int{0, 1 << 10, 64 << 10, 300 << 10, 3 << 20} {
		for _, stream := range []bool{false, true} {
			if resp := call(size, stream); resp.Meta.Start != "warm" || resp.Meta.Node != "node-1" {
				t.Errorf("%d bytes: %+v", size, resp.Meta)
			}
		}
	}
	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	if resp, err := direct.Invoke(t.Context(), fn, client.Request{}); err == nil {
		resp.Body.Close()
		t.Error("a removed function still answers")
	}
}
