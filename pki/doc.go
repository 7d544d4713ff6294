// Package pki is the cluster's certificate authority and the only source of
// TLS configurations between its processes.
//
// Every process holds a certificate whose one URI name says who it is:
//
//	faasd-sec://CLUSTER/ROLE/ID
//
// Promised: a handshake made with ServerConfig or ClientConfig succeeds only
// between two holders of keys that this cluster's authority certified, in a
// role (and, for a client that asks so, with an id) that the other side
// expects, over TLS 1.3, both certificates being valid at that moment. Private
// keys are ECDSA P-256 and are made where they are used; a certificate request
// carries the public half only. Host names and addresses play no part: moving
// a machine needs no new certificate, and owning an address proves nothing.
//
// Not promised: revocation lists. Certificates are short-lived and renewed;
// who is removed from the cluster keeps a working certificate until it ends.
// TLS here protects what operators may see (names, sizes, timing, signed
// descriptors) from the network; payloads are sealed by package sealed and do
// not depend on this authority.
package pki
