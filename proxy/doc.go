// Package proxy seals plain HTTP requests to functions and opens their replies,
// for clients that know nothing of sealing: curl, or any HTTP library. It runs
// where its callers run, and with keys of theirs.
//
// It promises that a request leaves this process only sealed, to a function whose
// owner is pinned (it never trusts on first use, and goes by the pins as their file
// has them now, or had them when it could last be used); that what no route of its
// configuration admits is refused before anything is read of the body; that what
// it returns as a reply was opened and authenticated piece by piece, and that a
// reply which breaks off or does not open ends the caller's connection in a way
// that no HTTP client takes for a whole reply; that neither its log nor its
// metrics hold anything of a request but the name of its route.
//
// It does not promise anything about the way between the caller and it: that is
// plain HTTP. It is loopback, a unix socket, or TLS with a token; a configuration
// that would put it elsewhere is refused. Whoever reaches it, acts with its keys.
package proxy
