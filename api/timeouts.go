package api

import "time"

// What a function gets whose descriptor does not say. Coordinator, node and
// agent agree on these, so that the inner bound always passes first.
const (
	DefaultReadTimeout  = 10 * time.Second // for a request's body to reach the function
	DefaultWriteTimeout = 10 * time.Second // for a reply's body to leave it
	DefaultExecTimeout  = 30 * time.Second // for the function itself
	DefaultStartTimeout = 30 * time.Second // from its process's start until it serves
	DefaultMaxInFlight  = 64               // invocations at once in one sandbox
	DefaultTmpBytes     = 64 << 20         // of memory-backed /tmp
	MaxTimeout          = 24 * time.Hour
)

// Milliseconds is v milliseconds, at most MaxTimeout, and def where v is 0.
func Milliseconds(v uint64, def time.Duration) time.Duration {
	if v == 0 {
		return def
	}
	return time.Duration(min(v, uint64(MaxTimeout/time.Millisecond))) * time.Millisecond
}

// InvocationBound is the longest that one invocation of a ready function may
// take, from its timeouts in milliseconds.
func InvocationBound(readMS, writeMS, execMS uint64) time.Duration {
	return Milliseconds(readMS, DefaultReadTimeout) + Milliseconds(writeMS, DefaultWriteTimeout) +
		Milliseconds(execMS, DefaultExecTimeout)
}

// AgentOverhead is what a sandbox needs beyond the function's own limits: the
// agent's memory, threads and the launcher. Nodes reserve it on top, and
// sandboxes' own cgroups allow it on top.
func AgentOverhead() Resources { return Resources{Memory: 48 << 20, PIDs: 64} }
