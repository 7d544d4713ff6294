// Package openfaas serves the management API of an OpenFaaS gateway, /system/…, so
// that faas-cli and whatever else speaks it work with a cluster of faasd-sec.
//
// It is an adapter: what a function, a secret or a namespace is, the cluster says,
// through the interfaces of this package. It guarantees that nothing is served
// without the operator's password, and nothing at all where there is none; that
// what was deployed comes back verbatim; and that sealed functions, which are their
// owners', are neither changed nor read through it: they are listed as what they are,
// and can be scaled.
//
// It does not serve invocations, and trusts its caller to bound connections.
package openfaas
