// Package reqauth signs and verifies management requests over HTTP with the
// owner's SM2 signing key. A platform that checks owners by their keys needs no
// shared password, and its operators, who hold no owner's key, cannot act for
// one.
//
// The header is
//
//	Authorization: FaasdSec-SM2 key=<point, 130 hex>, ts=<unix seconds>, nonce=<32 hex>, body=<SM3, 64 hex | unsigned>, sig=<DER, hex>
//
// and the signature is SM2 with SM3 over
//
//	"faasd-sec/v1 http" || 00 || method || LF || request-target || LF || ts || LF || nonce || LF || body
//
// with the request-target as it stands in the request line (path and query).
//
// What it promises: a request that verifies was signed by the holder of key, for
// this method, target and body, within Window of the verifier's clock, and was
// not seen by this verifier before.
//
// What it does not: the host is not signed, since a request reaches several
// coordinators behind one balancer, and each remembers its own nonces; an
// observer of the connection could repeat a request at another coordinator
// inside the window. Operations behind it are therefore idempotent or carry a
// sequence number. Headers other than this one are not signed. It says who asks,
// never whether they may.
package reqauth

import "time"

// Scheme is the authentication scheme in the Authorization header.
const Scheme = "FaasdSec-SM2"

// Label separates these signatures from every other use of a signing key.
const Label = "faasd-sec/v1 http"

// Window is how far a request's time may be from the verifier's, both ways.
const Window = 60 * time.Second

// unsignedBody stands in the body parameter of a request whose body is
// protected by other means, such as the digest in a registry upload.
const unsignedBody = "unsigned"
