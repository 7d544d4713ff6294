// Package image makes OCI images without Docker, moves them to and from
// registries, and keeps sealed bundles there as blobs.
//
// Promised: the same description over the same files, base and toolchain gives
// the same digest, whoever builds, wherever and whenever: owners, times and
// order are fixed, and permissions are reduced to what matters. Nothing from
// outside the build directory gets into an image, not through "..", not
// through links. What is fetched by digest has that digest, or reading it ends
// in an error.
//
// Not promised: running commands while building. An image is a base, files and
// a configuration; whoever needs RUN builds elsewhere and names the result as
// the base. A base of Debian packages is as the packages are on the day they
// are first downloaded: their maintainer scripts are not run.
package image
