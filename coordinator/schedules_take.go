package coordinator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// takeTicks stores the sealed messages of an upload as they come. They count for
// nothing before the end of the body was read and its signature holds.
func (c *Coordinator) takeTicks(sctx context.Context, ctx *fasthttp.RequestCtx, r *route, p queue.Plan, mode string) (_ queue.Plan, retErr error) {
	who, err := c.dep.Auth.Verify(reqauth.Request{Method: string(ctx.Method()), Target: string(ctx.RequestURI()),
		Authorization: string(ctx.Request.Header.Peek(fasthttp.HeaderAuthorization)), Body: reqauth.Stream()})
	if err != nil {
		return p, err
	}
	p.Maker = who.Fingerprint.String()
	if !r.gate.Callers.AnyCaller && !r.gate.Callers.AllowSender(who.Fingerprint) {
		e := api.Errorf(api.Code(sealed.CodeSender), "the function's owner does not admit this sender")
		e.Remedy = "have the owner list the key's fingerprint among the callers"
		return p, e
	}
	var body io.Reader = ctx.RequestBodyStream()
	if body == nil || ctx.Request.Header.ContentLength() == 0 {
		body = bytes.NewReader(ctx.PostBody())
	}
	if until, ok := sctx.Deadline(); ok {
		_ = ctx.Conn().SetReadDeadline(until) // a stalled upload ends
	}
	body = who.Reader(body)
	u, err := c.async.Queue.Upload(sctx, r.hex)
	if err != nil {
		return p, err
	}
	defer func() {
		if retErr != nil {
			actx, cancel := context.WithTimeout(context.WithoutCancel(sctx), storeTimeout)
			defer cancel()
			u.Abort(actx)
		}
	}()
	ticks := tickReader{r: body, route: r, sender: who.Key, now: time.Now()}
	for {
		at, message, err := ticks.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return p, err
		}
		if err := u.Add(sctx, at, message); err != nil {
			return p, err
		}
	}
	return u.Commit(sctx, p, mode)
}

// tickReader reads the messages of an upload and checks what can be checked.
type tickReader struct {
	r      io.Reader
	route  *route
	sender sealed.PublicKey
	now    time.Time
	buf    [api.MaxTickBytes]byte
}

// farthest is how far ahead a tick may be: no key of a function lives for longer.
const farthest = 400 * 24 * time.Hour

// next gives a tick, in unix milliseconds, and its message, which is overwritten by
// the next. io.EOF is the end of an upload whose signature holds.
func (t *tickReader) next() (int64, []byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(t.r, size[:]); err != nil {
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || api.CodeOf(err) != api.CodeInternal {
			return 0, nil, err
		}
		return 0, nil, api.Wrap(api.CodeInvalid, err, "the body ended early or came too slowly")
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > api.MaxTickBytes {
		e := api.Errorf(api.CodeTooLarge, "a sealed tick has %d bytes, at most %d are kept", n, api.MaxTickBytes)
		e.Field, e.Remedy = "body", "send less with each tick, or have the function fetch what is large"
		return 0, nil, e
	}
	message := t.buf[:n]
	if _, err := io.ReadFull(t.r, message); err != nil {
		if api.CodeOf(err) != api.CodeInternal {
			return 0, nil, err
		}
		return 0, nil, api.Wrap(api.CodeInvalid, err, "the body ended early or came too slowly")
	}
	p, err := sealed.Peek(message)
	if err != nil {
		return 0, nil, gate.Coded(err)
	}
	at := int64(min(p.Message.Issued, 1<<62))
	switch tick := time.UnixMilli(at); {
	case p.Grant.Role != sealed.RoleRequest:
		err = api.Errorf(api.Code(sealed.CodeFormat), "the envelope is not a request")
	case p.Grant.Name != string(t.route.name):
		err = api.Errorf(api.Code(sealed.CodeWrongFunction), "sealed for %s, sent for %s", p.Grant.Name, t.route.name)
	case p.Grant.Sender != t.sender:
		err = api.Errorf(api.Code(sealed.CodeSender), "a tick was sealed by another than who sends it")
	case tick.Before(t.now.Add(-catchUp)):
		err = api.Invalid("body", "seal ticks to come", "a tick is over: "+tick.UTC().Format(time.RFC3339))
	case tick.After(t.now.Add(farthest)):
		err = api.Invalid("body", "seal for a shorter time (--for)", "a tick is too far ahead: "+tick.UTC().Format(time.RFC3339))
	default:
		err = t.route.takes(&p, tick)
	}
	return at, message, err
}

// takes checks a message that is issued at its tick as if it came then.
func (r *route) takes(p *sealed.Peeked, tick time.Time) error {
	if err := gate.Check(p, &r.gate, tick); err != nil {
		return err
	}
	if err := sealed.CheckWindow(&p.Grant, &p.Message, r.maxAge, p.Message.Issued); err != nil {
		return gate.Coded(err)
	}
	return r.hasKey(p.Grant.Recipient, tick)
}

// hasKey refuses a key that the function does not have at a time.
func (r *route) hasKey(id sealed.KeyID, at time.Time) error {
	signed, err := sealed.ParseDescriptor(r.rec.Descriptor)
	if err != nil {
		return api.Wrap(api.CodeInternal, err, "a stored descriptor does not parse")
	}
	for _, k := range signed.Unverified().Decryption {
		if now := uint64(max(at.Unix(), 0)); k.Key.KeyID() == id && k.NotBefore <= now && now <= k.NotAfter {
			return nil
		}
	}
	e := api.Errorf(api.Code(sealed.CodeUnknownKey), "sealed to a key that %s does not have at that time", r.name.Short())
	e.Remedy = "fetch the descriptor, verify it and seal again, for a shorter time"
	return e
}
