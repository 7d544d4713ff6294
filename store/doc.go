// Package store keeps what a cluster must not forget: functions with their
// signed descriptors, join tokens and settings. It is etcd behind its Go
// client, always: a single member inside the coordinator's process by default,
// or a cluster elsewhere by configuration, with the same code above both.
//
// Promised: a write that returned nil has been fsynced (by a majority, where
// etcd is clustered) and survives SIGKILL and power cuts; writes that name the
// version they replace never overwrite another's; a token is used exactly as
// often as allowed, whoever races for it; of a name at most one leads, with a
// fence that grows; each call ends within its deadline.
// The embedded member opens no port and no socket: nothing but this process
// can talk to it.
//
// Not promised: that a write which returned an error did not happen. When the
// deadline passed the outcome is unknown, and the caller reads again. A Cache
// is some milliseconds behind the store; Cache.Wait bridges the gap. Nothing
// here is encrypted at rest: it holds only what operators may see.
package store
