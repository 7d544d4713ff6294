// Package sbom lists what an image is made of, as CycloneDX: Go modules, npm and
// Python packages, Debian packages, from what these leave in the files.
//
// It promises that the same files give the same bytes: components are sorted, and
// there is neither a time nor anything random. It does not promise to be whole:
// code that was copied without its lock file, build information or package
// database is not seen, and what these files claim is not verified.
package sbom
