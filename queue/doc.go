// Package queue keeps asynchronous invocations in etcd, from the moment they are
// accepted until somebody fetched or forgot their results.
//
// Promised: a call that Accept returned is durable (fsynced, by a majority where
// etcd is clustered). It ends in exactly one stored result, or in the dead
// letters, and is attempted at least once unless it expires or is cancelled
// before. Any number of queues may work on one etcd: a call is leased by one of
// them, with a fence that grows with the store's revision, and who lost the lease
// writes nothing any more. Within a function calls go by priority, then by
// arrival; between owners, and between an owner's functions, by turns.
//
// Not promised: that a call is attempted once. Whoever attempts one may lose its
// lease, or its power, after the function ran and before the result was written.
// Bounds on what waits and on what runs at once are those of a picture that is
// some milliseconds old; several coordinators may pass them by what they do
// meanwhile. Bodies are whatever the caller sent: those of sealed functions are
// sealed, those of plain ones are not, and nothing here is encrypted at rest.
package queue
