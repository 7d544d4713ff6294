// Package shim is a shim for containerd, its task API in version 2, that makes
// containers itself instead of executing an OCI runtime: one process serves
// all tasks of one containerd namespace.
//
// Promised: a task that containerd was told of is under the limits and within
// the walls of its specification, or Create failed and left nothing. The end
// of a task is told to everybody who waits and sent to containerd until it has
// taken it, also when containerd is restarted meanwhile. A task whose bundle
// containerd has removed is ended, and so is every task of a shim that was
// killed, by the delete command that containerd runs then.
//
// Not promised: processes beside the first one (exec), terminals, standard
// streams, checkpoints, or specifications other than those of this project's
// runtime: such requests fail. All tasks share the fate of one process; if it
// dies, containerd ends all of them.
package shim
