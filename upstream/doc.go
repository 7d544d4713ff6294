// Package upstream speaks HTTP/1.1 over kept connections to one server, in both
// directions at once: an agent to a function's process, a caller to the gateway,
// and with small bodies a gateway to a node, and a node to an agent.
//
// A small request, the usual case, is one write on a kept connection and its
// reply is read by the same goroutine. A large or endless body is written by a
// goroutine of its own, so that the server may answer while it still reads: an
// echo of a gigabyte needs two buffers and no more.
//
// It promises that headers are sent and taken strictly (no folding, no control
// characters, no two opinions about a body's length), that hop-by-hop headers
// stay at their hop, that a request is never sent twice unless it is idempotent
// and nothing of a reply had come on a connection that was kept before, and that
// Close of a reply returns only after nothing reads the request's body any more.
// Trailers are read and dropped. An upgrade is refused unless it was asked for; then
// both ends are spliced (Splice) until one of them is done.
package upstream
