// Package api holds the nouns of faasd-sec: plain types, error codes and the
// structs that cross a wire between its processes.
//
// It imports nothing else of this module, so that every other package can
// agree on these words without knowing the others. It promises that a code, a
// header name, a path and a field, once released, keep their meaning; it
// promises nothing about who is allowed to send what: that is decided by the
// packages that serve them.
package api
