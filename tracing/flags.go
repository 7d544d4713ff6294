package tracing

import "flag"

// Flags are the flags of a process that traces, with cfg's values as defaults.
func Flags(fs *flag.FlagSet, cfg *Config) {
	fs.StringVar(&cfg.Endpoint, "trace-endpoint", cfg.Endpoint, "`URL` of an OpenTelemetry collector (OTLP over HTTP) for spans of invocations, which carry no payload; empty for none")
	fs.Float64Var(&cfg.Ratio, "trace-ratio", cfg.Ratio, "share of invocations that are traced where the caller has not decided, `0 to 1`")
}
