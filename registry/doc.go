// Package registry is the OCI registry inside the coordinator: owners push
// images and sealed bundles to it, nodes pull them by digest. It speaks the
// distribution specification, version 1.1, as far as pushing and pulling need
// it, over net/http and over fasthttp, with bodies streamed both ways.
//
// Promised: what is served under a digest has that digest; a push that was
// answered with 201 is on the disk, fsynced, and there after a restart or a
// power cut; memory use does not grow with the size of a blob; a body over its
// limit is refused when the limit is passed, not after; nothing is served or
// taken before Config.Authorize agreed.
//
// Not promised: confidentiality. Images are as public as the cluster's
// network; what must stay secret is sealed before it gets here. Blobs are
// shared between repositories, so that who may read one repository can read
// any blob whose digest it knows. Uploads in progress end with the process,
// and clients begin them anew. There is no catalog.
package registry
