package reqauth

import (
	"crypto/subtle"
	"fmt"
	"io"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Body says how the signed digest is held against the body. The zero value
// expects an empty body.
type Body struct {
	kind bodyKind
	data []byte
}

type bodyKind uint8

const (
	bodyBytes bodyKind = iota
	bodyStream
	bodyUnsigned
)

// Bytes is a body that was read whole.
func Bytes(b []byte) Body { return Body{data: b} }

// Stream is a body that is read later: the handler must read it through
// Caller.Reader and act only when that reader has come to its end.
func Stream() Body { return Body{kind: bodyStream} }

// Unsigned is Stream that also takes a body which the signature leaves out.
// Only for content that is checked otherwise.
func Unsigned() Body { return Body{kind: bodyUnsigned} }

// Request is what a verifier needs of an HTTP request.
type Request struct {
	Method        string
	Target        string // the request-target, byte for byte
	Authorization string // the header's value, empty if absent
	Body          Body
}

// Caller is who signed a request.
type Caller struct {
	Key         sealed.PublicKey
	Fingerprint sealed.Fingerprint

	digest   sealed.Digest
	unsigned bool
}

// Reader passes r on and turns its end into an error unless all that was read
// has the signed digest. For an unsigned body it returns r.
func (c Caller) Reader(r io.Reader) io.Reader {
	if c.unsigned {
		return r
	}
	h := sm3.New()
	return &checkedReader{r: io.TeeReader(r, h), sum: func() []byte { return h.Sum(nil) }, want: c.digest}
}

type checkedReader struct {
	r    io.Reader
	sum  func() []byte
	want sealed.Digest
}

func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err == io.EOF && subtle.ConstantTimeCompare(c.sum(), c.want[:]) != 1 {
		return n, denied("the body is not the one that was signed", signRemedy)
	}
	return n, err
}

// Verifier checks requests against one clock and one memory of nonces. It is
// safe for concurrent use. Each request costs one SM2 verification, so limit
// rates before it.
type Verifier struct {
	now  func() time.Time
	seen *nonces
}

// NewVerifier makes a verifier; now is time.Now outside tests.
func NewVerifier(now func() time.Time) *Verifier {
	return &Verifier{now: now, seen: newNonces(maxNonces, maxNoncesPerKey)}
}

// Claimed is the key that an Authorization header says it was signed with, by
// nothing but its own word: enough to refuse those who may not ask, before a
// signature is checked and a nonce remembered for them.
func Claimed(authorization string) (sealed.Fingerprint, error) {
	p, err := parseHeader(authorization)
	if err != nil {
		return sealed.Fingerprint{}, err
	}
	return p.key.Fingerprint(), nil
}

// Verify returns the signer of r, or an *api.Error: CodeUnauthorized for a
// missing, malformed, stale or forged signature, CodeReplay for one seen before,
// CodeBusy when it cannot remember another nonce.
func (v *Verifier) Verify(r Request) (Caller, error) {
	p, err := parseHeader(r.Authorization)
	if err != nil {
		return Caller{}, err
	}
	now := v.now()
	signed := time.Unix(p.ts, 0)
	if d := now.Sub(signed); d > Window || d < -Window {
		return Caller{}, denied(fmt.Sprintf("signed %s away from the server's clock, at most %s is taken",
			d.Abs().Round(time.Second), Window), "set the clocks of both machines, for example by NTP")
	}
	if !sealed.Verify(p.key, p.sig, Label, signedText(r.Method, r.Target, p.tsRaw, p.nonce, p.body)) {
		return Caller{}, denied("the signature does not match the request", signRemedy)
	}
	c := Caller{Key: p.key, Fingerprint: p.key.Fingerprint()}
	if err := c.checkBody(r.Body, p.body); err != nil {
		return Caller{}, err
	}
	// Last, so that only what is accepted takes room: two copies of one request
	// may both come this far, and exactly one gets past.
	if err := v.seen.add(c.Fingerprint, p.nonce, signed.Add(Window), now); err != nil {
		return Caller{}, err
	}
	return c, nil
}

func (c *Caller) checkBody(b Body, claim string) error {
	if claim == unsignedBody {
		if b.kind != bodyUnsigned {
			return denied("the body has to be signed here", signRemedy)
		}
		c.unsigned = true
		return nil
	}
	var err error
	if c.digest, err = sealed.ParseDigest(claim); err != nil {
		return denied("body is not an SM3 digest in lower-case hex", signRemedy)
	}
	if b.kind != bodyBytes {
		return nil
	}
	if got := sm3.Sum(b.data); subtle.ConstantTimeCompare(got[:], c.digest[:]) != 1 {
		return denied("the body is not the one that was signed", signRemedy)
	}
	return nil
}

// errReplay and errFull are made anew, as an *api.Error is mutable.
func errReplay() error {
	return &api.Error{Code: api.CodeReplay, Field: "Authorization",
		Message: "this request was received before", Remedy: "sign a new request for a retry"}
}

func errFull() error {
	return &api.Error{Code: api.CodeBusy, Field: "Authorization",
		Message: "too many signed requests at once", Remedy: "retry in a minute"}
}
