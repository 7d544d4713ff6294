package tracing

import (
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

	"github.com/faasd-sec/faasd-sec/api"
)

// collect is a collector, and what it was sent.
func collect(t *testing.T) (url string, sent func() []*spans.Span) {
	t.Helper()
	var mu sync.Mutex
	var all []*spans.Span
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &req) != nil {
			t.Errorf("%s: %d bytes, %v", r.URL.Path, len(b), err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				all = append(all, ss.Spans...)
			}
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() []*spans.Span { mu.Lock(); defer mu.Unlock(); return all }
}

func open(t *testing.T, cfg Config) *Tracer {
	t.Helper()
	tr, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestSpansAreChildrenAcrossProcesses(t *testing.T) {
	url, sent := collect(t)
	cfg := Default("test")
	cfg.Endpoint, cfg.Ratio = url, 1
	one, other := open(t, cfg), open(t, cfg)
	first := one.Start(nil, "invoke")
	first.Function("hello.fn")
	second := other.Start([]byte(first.Traceparent()), "node")
	now := time.Now()
	second.Past("start", now.Add(-time.Second), now)
	second.Past("never", time.Time{}, now)
	second.Failed(api.CodeNoRoom)
	second.End()
	first.Status(200)
	first.End()
	for _, tr := range []*Tracer{one, other} {
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}
	byName := map[string]*spans.Span{}
	for _, s := range sent() {
		byName[s.Name] = s
	}
	invoke, node, start := byName["invoke"], byName["node"], byName["start"]
	if len(byName) != 3 || invoke == nil || node == nil || start == nil {
		t.Fatalf("spans %v", byName)
	}
	if string(node.ParentSpanId) != string(invoke.SpanId) || string(start.ParentSpanId) != string(node.SpanId) || string(start.TraceId) != string(invoke.TraceId) {
		t.Errorf("they are not children of each other: %v", byName)
	}
	if node.Status.Code != spans.Status_STATUS_CODE_ERROR || node.Status.Message != "no_room" || invoke.Status.Code == spans.Status_STATUS_CODE_ERROR {
		t.Errorf("outcomes: %v, %v", node.Status, invoke.Status)
	}
	if got := start.EndTimeUnixNano - start.StartTimeUnixNano; got != uint64(time.Second) {
		t.Errorf("a past second took %d ns", got)
	}
}

func TestCallersDecideAndTheRatioForTheOthers(t *testing.T) {
	url, sent := collect(t)
	cfg := Default("test")
	cfg.Endpoint, cfg.Ratio = url, 0
	tr := open(t, cfg)
	tr.Start(nil, "not sampled").End()
	tr.Start([]byte("nonsense"), "not sampled").End()
	tr.Start([]byte("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"), "sampled").End()
	unsampled := tr.Start([]byte("00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"), "not sampled")
	if got := unsampled.Traceparent(); !strings.HasPrefix(got, "00-0123456789abcdef0123456789abcdef-") || !strings.HasSuffix(got, "-00") {
		t.Errorf("passed on as %q", got)
	}
	unsampled.End()
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if got := sent(); len(got) != 1 || got[0].Name != "sampled" {
		t.Errorf("%v", got)
	}
}

func TestWithoutAnEndpointNothingIsDone(t *testing.T) {
	tr := open(t, Default("test"))
	if n := testing.AllocsPerRun(100, func() {
		s := tr.Start(nil, "x")
		s.Function("hello.fn")
		s.Past("y", time.Time{}, time.Time{})
		if s.Traceparent() != "" {
			t.Error("a header from nothing")
		}
		s.End()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
}

func TestBadConfigurationIsNamed(t *testing.T) {
	for field, cfg := range map[string]Config{
		"trace-endpoint": {Endpoint: "127.0.0.1:4318", Ratio: 1},
		"trace-ratio":    {Endpoint: "http://127.0.0.1:4318", Ratio: 2},
	} {
		_, err := Open(t.Context(), cfg)
		if e, ok := err.(*api.Error); !ok || e.Field != field || e.Remedy == "" {
			t.Errorf("%s: %v", field, err)
		}
	}
}
