package e2e

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// A cold call of a caller who traces is a tree of spans, from the caller's own to
// the parts of the function's start; and nothing of what is said is in any of them.
func TestTracesTellWhereTimeGoesAndNothingElse(t *testing.T) {
	var mu sync.Mutex
	var sent [][]byte
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		sent = append(sent, b)
		mu.Unlock()
	}))
	t.Cleanup(srv.Close)
	c := up(t, 1, func(cfg *local.Config) {
		args := []string{"-trace-endpoint", srv.URL, "-trace-ratio", "0"}
		cfg.NodeArgs, cfg.Args = args, args
	})
	can := newCanaries(t)
	fn := c.deploy(t, "traced")
	const trace, root = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	resp, body, err := c.invoke(t, fn, client.Request{Body: strings.NewReader(can.secret), Trace: "00-" + trace + "-" + root + "-01",
		Header: http.Header{"X-Test": {can.header}}})
	if err != nil || string(body) != can.secret || resp.Meta.Start == "warm" {
		t.Fatalf("%+v, %v", resp, err)
	}
	c.must(t, fn, "/", "not traced") // by nobody's decision
	tree := map[string]*spans.Span{}
	waitFor(t, 20*time.Second, "the spans", func() error {
		mu.Lock()
		defer mu.Unlock()
		for _, b := range sent {
			var req collector.ExportTraceServiceRequest
			if err := proto.Unmarshal(b, &req); err != nil {
				return err
			}
			for _, rs := range req.ResourceSpans {
				for _, ss := range rs.ScopeSpans {
					for _, s := range ss.Spans {
						if hex.EncodeToString(s.TraceId) != trace {
							t.Errorf("a span of nobody's trace: %v", s)
						}
						tree[s.Name] = s
					}
				}
			}
		}
		for _, want := range []string{"coordinator", "node", "start", "start.bind", "start.keys"} {
			if tree[want] == nil {
				return io.ErrNoProgress
			}
		}
		return nil
	})
	for child, parent := range map[string]string{"node": "coordinator", "start": "node", "start.bind": "node", "start.keys": "node"} {
		if !bytes.Equal(tree[child].ParentSpanId, tree[parent].SpanId) {
			t.Errorf("%s is no child of %s", child, parent)
		}
	}
	if hex.EncodeToString(tree["coordinator"].ParentSpanId) != root {
		t.Errorf("the coordinator's parent is %x", tree["coordinator"].ParentSpanId)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, b := range sent {
		for _, secret := range []string{can.secret, can.header} {
			if bytes.Contains(b, []byte(secret)) {
				t.Error("a span says what was said")
			}
		}
	}
}
