package tracing

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/faasd-sec/faasd-sec/api"
)

// Config says where spans go.
type Config struct {
	Endpoint string        // URL of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318; "" for no tracing
	Ratio    float64       // share of invocations, 0 to 1, that are traced where the caller has not decided
	Service  string        // what this process is, such as "coordinator"
	Instance string        // which one
	Version  string        // its version
	Timeout  time.Duration // of one batch's export
}

// Default traces one in a hundred, once there is an endpoint.
func Default(service string) Config {
	return Config{Ratio: 0.01, Service: service, Timeout: 10 * time.Second}
}

// Tracer makes spans. A nil one makes none.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// Open makes a Tracer, nil where cfg names no endpoint. It does not wait for the
// collector. A bad endpoint or ratio is refused with api.CodeInvalid.
func Open(ctx context.Context, cfg Config) (*Tracer, error) {
	if !(cfg.Ratio >= 0 && cfg.Ratio <= 1) {
		return nil, api.Invalid("trace-ratio", "give a share from 0 to 1", fmt.Sprintf("%v is none", cfg.Ratio))
	}
	if cfg.Endpoint == "" {
		return nil, nil
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, api.Invalid("trace-endpoint", "give the URL of an OTLP collector, such as http://127.0.0.1:4318", fmt.Sprintf("%q is none", cfg.Endpoint))
	}
	exporter, err := otlptrace.New(ctx, otlptracehttp.NewClient(otlptracehttp.WithEndpointURL(u.JoinPath("v1", "traces").String()),
		otlptracehttp.WithTimeout(cfg.Timeout)))
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(cfg.Ratio))),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", "faasd-sec-"+cfg.Service),
			attribute.String("service.instance.id", cfg.Instance), attribute.String("service.version", cfg.Version))))
	return &Tracer{provider: provider, tracer: provider.Tracer("faasd-sec")}, nil
}

// closeTimeout is how long the last spans may take.
const closeTimeout = 3 * time.Second

// Close sends what has not been sent. It is a process's clean-up, and bounded by
// itself.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("tracing: the last spans: %w", err)
	}
	return nil
}

var format propagation.TraceContext

// Start begins a span whose parent is that of a Traceparent header; with an empty
// or bad one it is the first of its trace.
func (t *Tracer) Start(traceparent []byte, name string) *Span {
	if t == nil {
		return nil
	}
	ctx := context.Background() // carries the parent only; nothing ends with it
	if len(traceparent) > 0 {
		ctx = format.Extract(ctx, propagation.MapCarrier{"traceparent": string(traceparent)})
	}
	return t.begin(ctx, name)
}

func (t *Tracer) begin(parent context.Context, name string, more ...trace.SpanStartOption) *Span {
	ctx, span := t.tracer.Start(parent, name, more...)
	return &Span{t: t, ctx: ctx, span: span}
}
