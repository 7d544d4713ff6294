// Package cgroups limits groups of processes and reads what they use, on
// cgroup v1, on v2 and on the hybrid of both.
//
// It promises that a limit which Verify accepted is the one the kernel holds:
// every value is read back from the file it was written to and compared, page
// and tick rounding known. It promises that a nil limit leaves its files
// alone, and that a value the kernel shows but this package cannot parse is an
// error, never a default.
//
// It does not promise that a limit is sensible, that a v1 block I/O limit
// holds buffered writes (the kernel charges those to whoever flushes them),
// or that nobody else changes the files later.
//
// An FS can be rooted anywhere, so that the layouts of other machines are
// tested with plain files.
package cgroups
