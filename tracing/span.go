package tracing

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/faasd-sec/faasd-sec/api"
)

// Span is one part of an invocation's way. A nil one is none.
type Span struct {
	t    *Tracer
	ctx  context.Context // the span in the form that children take it
	span trace.Span
}

// Function says which function is called.
func (s *Span) Function(name api.FunctionName) { s.set("faas.name", string(name)) }

// Revision says of which revision, as a digest in hex.
func (s *Span) Revision(hex string) { s.set("faas.version", hex) }

// Call says which call it is.
func (s *Span) Call(id string) { s.set("faas.invocation_id", id) }

// Node says which node serves it.
func (s *Span) Node(id string) { s.set("faasdsec.node", id) }

// Began says how the sandbox was had: "warm", "thawed", "pooled", "plain".
func (s *Span) Began(how string) { s.set("faasdsec.start", how) }

// Status says how the exchange ended for whoever asked, by its HTTP status; those
// from 500 up are failures.
func (s *Span) Status(code int) {
	if s == nil {
		return
	}
	s.span.SetAttributes(attribute.Int("http.response.status_code", code))
	if code >= 500 {
		s.span.SetStatus(codes.Error, "")
	}
}

func (s *Span) set(key, value string) {
	if s != nil && value != "" {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// Traceparent is the header that makes what is done elsewhere a child of s, ""
// for a nil one.
func (s *Span) Traceparent() string {
	if s == nil {
		return ""
	}
	carrier := propagation.MapCarrier{}
	format.Inject(s.ctx, carrier)
	return carrier["traceparent"]
}

// Past adds a part that is over.
func (s *Span) Past(name string, from, to time.Time) {
	if s == nil || from.IsZero() || to.Before(from) {
		return
	}
	s.t.begin(s.ctx, name, trace.WithTimestamp(from)).span.End(trace.WithTimestamp(to))
}

// Failed says why nothing came of it.
func (s *Span) Failed(why api.Code) {
	if s != nil && why != "" {
		s.span.SetStatus(codes.Error, why.Label())
	}
}

// End ends s. It must be called once for every span.
func (s *Span) End() {
	if s != nil {
		s.span.End()
	}
}
