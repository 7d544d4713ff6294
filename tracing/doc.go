// Package tracing sends OpenTelemetry spans of invocations to a collector: where
// the time between a caller and its function went, and never what was said. What
// can be put on a span is a fixed list of names, numbers and codes that operators
// see anyway; there is no way to put a header, a payload or a key on one.
//
// A nil *Tracer and a nil *Span do nothing, so that whoever traces nothing pays a
// comparison. Spans are sent in the background, in batches; where the collector is
// slow or away they are dropped, and no invocation waits.
//
// Trace context comes and goes in the header Traceparent as W3C Trace Context
// (https://www.w3.org/TR/trace-context/) has it. A caller's decision to sample is
// followed; for callers without one, Config.Ratio decides.
package tracing
