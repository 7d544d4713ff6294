// Package boot is what containerd runs for each task: the start and delete
// commands of a shim whose process is elsewhere.
//
// Both are executed once per task, so that what they link is what they cost:
// this package uses neither protocol buffers nor the network package, and
// leaves what needs more to the server's program, which it executes.
//
// Promised: at most one process serves a containerd namespace; one that is
// told of a task does not end before the task was created or its announcement
// has expired.
package boot
