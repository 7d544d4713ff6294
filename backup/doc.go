// Package backup writes all that a cluster cannot do without into one archive,
// while it runs, and makes a coordinator of such an archive.
//
// Promised: the store is as it was at one moment, and what its functions name
// in the registry is there, since that is copied afterwards and only grows.
// Private keys of functions stay sealed as the key broker's vault has them: an
// archive alone opens none. Restoring writes into empty directories only.
//
// Not promised: that the archive itself is a secret. It holds the authority's
// key in clear: whoever has it can enrol machines. Its caller seals it, or keeps
// it where the coordinator's state might be kept.
package backup
