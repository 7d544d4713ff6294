// Package gate is what every gateway does with a sealed invocation before it
// goes anywhere: coordinators, and nodes that serve callers directly.
//
// It promises that both refuse alike: the same checks in the same order, the
// same codes, problem documents, headers and metrics. Nothing is opened for
// that. What the clear part says is claimed and not proved, so a refusal here
// only saves a trip: the agent checks all of it again, with keys.
package gate

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// DefaultMaxBody is the most, in bytes, that a gateway takes as one sealed
// request unless it is told otherwise.
const DefaultMaxBody = 4 << 30

// Function is what a gateway goes by, from the function's descriptor.
type Function struct {
	Name     api.FunctionName
	Revision sealed.Digest
	Callers  *sealed.Policy
}

// CallID keeps a caller's id where it is a plain one, else draws one, and
// promises it to the caller.
func CallID(ctx *fasthttp.RequestCtx) string {
	b := ctx.Request.Header.Peek(api.HeaderCallID)
	ok := len(b) > 0 && len(b) <= 64
	for _, ch := range b {
		ok = ok && (ch >= 'a' && ch <= 'z' || ch >= 'A' && ch <= 'Z' || ch >= '0' && ch <= '9' || ch == '-')
	}
	var id string
	if ok {
		id = string(b)
	} else {
		var raw [12]byte
		var text [24]byte
		_, _ = rand.Read(raw[:]) // never fails
		id = string(hex.AppendEncode(text[:0], raw[:]))
	}
	ctx.Response.Header.Set(api.HeaderCallID, id)
	return id
}

// Name checks the method and reads the function's name. After an error the body
// is unread, and the connection ends with the reply.
func Name(ctx *fasthttp.RequestCtx, name string) (api.FunctionName, error) {
	if !ctx.IsPost() {
		ctx.Response.Header.Set(fasthttp.HeaderAllow, "POST")
		e := api.Errorf(api.CodeMethod, "a sealed invocation is a POST")
		e.Remedy = "the function's own method travels inside the sealed body: faasd-sec invoke --method"
		return "", Unread(ctx, e)
	}
	fn, err := api.ParseFunctionName(name)
	if err != nil {
		return "", Unread(ctx, err)
	}
	return fn, nil
}

// Unread refuses with err a request whose body was not looked at: what is left
// of it must not be taken for the next request.
func Unread(ctx *fasthttp.RequestCtx, err error) error {
	if ctx.Request.Header.ContentLength() != 0 {
		ctx.SetConnectionClose()
	}
	return err
}

// Take takes the body of a request to the function, or the first part of a
// large one, and reads its clear part. limit bounds the body in bytes, 0 does
// not. The caller releases the Body; after an error there is none.
func Take(ctx *fasthttp.RequestCtx, fn api.FunctionName, limit int64) (*relay.Body, sealed.Peeked, error) {
	if ct := ctx.Request.Header.ContentType(); string(ct) != api.ContentTypeSealed {
		return nil, sealed.Peeked{}, Unread(ctx, NotSealed(fn))
	}
	body, err := relay.ReadBody(ctx, limit)
	if err != nil {
		return nil, sealed.Peeked{}, err
	}
	p, err := sealed.Peek(body.Head)
	switch {
	case err != nil:
		err = Coded(err)
	case p.Grant.Role != sealed.RoleRequest:
		err = api.Errorf(api.Code(sealed.CodeFormat), "the envelope is not a request")
	case p.Grant.Name != string(fn):
		err = api.Errorf(api.Code(sealed.CodeWrongFunction), "sealed for %s, posted to %s", p.Grant.Name, fn)
	}
	if err != nil {
		body.Release()
		return nil, p, err
	}
	return body, p, nil
}

// NotSealed refuses a request to a sealed function that is none of its, and says
// what to do.
func NotSealed(fn api.FunctionName) error {
	e := api.Errorf(api.CodeMediaType, "%q is a sealed function and takes %s", fn.Short(), api.ContentTypeSealed)
	e.Field, e.Remedy = "Content-Type", "seal the request: faasd-sec invoke "+fn.Short()+", or send it through faasd-sec proxy"
	return e
}

// Check compares the clear part with the function. now is the time by which
// messages expire.
func Check(p *sealed.Peeked, f *Function, now time.Time) error {
	switch {
	case p.Grant.Context != f.Revision:
		e := api.Errorf(api.CodeStaleRevision, "sealed for another revision of %s", f.Name)
		e.Remedy = "fetch the descriptor, verify it and seal again"
		return e
	case !f.Callers.AnyCaller && !f.Callers.AllowSender(p.Grant.Sender.Fingerprint()):
		// Who claims to be another comes further, but has to know a caller's key.
		e := api.Errorf(api.Code(sealed.CodeSender), "the function's owner does not admit this sender")
		e.Remedy = "have the owner list the key's fingerprint among the callers"
		return e
	case p.Message.Expires <= uint64(now.UnixMilli()):
		return api.Errorf(api.Code(sealed.CodeWindow), "the message expired before it arrived")
	}
	return nil
}

// Coded gives an error of the envelope the form that survives the wire.
func Coded(err error) error {
	if code := sealed.CodeOf(err); code != "" {
		return api.Wrap(api.Code(code), err, err.Error())
	}
	return err
}
