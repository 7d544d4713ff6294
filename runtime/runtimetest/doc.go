// Package runtimetest has the one suite that every implementation of
// runtime.Runtime passes, an in-memory implementation for tests of what sits
// above it, and what tests need to make images and talk into sandboxes.
//
// The in-memory Fake isolates nothing. It promises the contract's order of
// events, errors and idempotence, so that a node tested against it is tested
// against what the suite holds containerd to.
package runtimetest
