package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
)

// send offers the invocation to one node. Exactly one result is set: the
// reply; a refusal, after which the body is untouched; or an error that ends
// the invocation. warm says that a slot is free there, as far as is known.
func (c *Coordinator) send(p *peer, t *task, body *relay.Body, id string, warm bool) (*relay.Reply, error, error) {
	r := t.r
	until := t.until(time.Now().Add(c.cfg.StartTimeout + r.bound))
	existing, settle := c.permit(t, warm)
	began := false
	defer func() { settle(began) }()
	req := t.request(id)
	req.Headers = append(req.Headers, t.trace...)
	if existing {
		req.Headers = append(req.Headers, existingOnly)
	}
	told := false
	var sent func() // what a manifest asked for is forgotten as soon as a node has been told
	if t.held != nil {
		sent = t.held.forget
	}
	for {
		if !body.Small {
			// A large body can be sent once only: ask first.
			ticket, refusal, err := c.admit(p, t, until, sent, existing)
			if api.CodeOf(refusal) == api.CodeUnknownRevision && !told {
				told = true
				if err := c.tell(p, r); err != nil {
					return nil, err, nil
				}
				if err := t.open(); err != nil {
					return nil, nil, err
				}
				continue
			}
			if refusal != nil || err != nil {
				return nil, refusal, err
			}
			req.Headers = append(req.Headers, relay.Header{Name: api.HeaderTicket, Value: ticket.Ticket})
		}
		now := req
		now.Sent = sent
		if body.Small { // of a large one the ticket knows
			if err := t.open(); err != nil {
				return nil, nil, err
			}
			now.Headers = append(req.Headers, t.needs().headers...)
		}
		reply, err := p.up.Do(until, now, body)
		switch {
		case err != nil && req.Within != nil && t.cancelled():
			return nil, nil, api.Wrap(api.CodeNodeLost, err, "the attempt was ended, as its call was cancelled or is another coordinator's")
		case api.CodeOf(err) == api.CodeCallerGone:
			return nil, nil, err
		case err != nil:
			return c.broken(p, until, err)
		}
		code := api.Code(reply.Header(api.HeaderRefused))
		if code == "" {
			start := reply.Header(api.HeaderStart)
			began = start != "" && start != "warm"
			if text, fresh := loadOf(p, reply); fresh {
				c.news.put(p.id, text) // for Replied
			}
			return reply, nil, nil
		}
		c.observe(p, reply)
		if code == api.CodeUnknownRevision && !told && body.Small {
			reply.Discard()
			told = true
			if err := c.tell(p, r); err != nil {
				return nil, err, nil
			}
			if err := t.open(); err != nil {
				return nil, nil, err
			}
			continue
		}
		refusal := problemOf(reply)
		if final(code) || !body.Small {
			return nil, nil, refusal
		}
		return nil, refusal, nil
	}
}

// clock tells a node what time it is here: one that sees it otherwise starts nothing.
func clock() relay.Header {
	return relay.Header{Name: api.HeaderTime, Value: strconv.FormatInt(time.Now().UnixMilli(), 10)}
}

// request is what a node is sent with the body, but for a ticket and needs.
func (t *task) request(id string) relay.Request {
	if t.call != nil {
		return relay.Request{Method: t.call.method, Path: t.r.invoke, Upgrade: t.call.upgrade, All: true, Within: t.attempt,
			Headers: append(make([]relay.Header, 0, len(t.call.headers)+2), t.call.headers...)}
	}
	headers := make([]relay.Header, 3, 6)
	headers[0] = relay.Header{Name: fasthttp.HeaderContentType, Value: api.ContentTypeSealed}
	headers[1] = relay.Header{Name: api.HeaderCallID, Value: id}
	headers[2] = clock()
	return relay.Request{Method: fasthttp.MethodPost, Path: t.r.invoke, Headers: headers}
}

// broken sorts a failed exchange: refused if nothing was sent, else lost.
func (c *Coordinator) broken(p *peer, until time.Time, err error) (*relay.Reply, error, error) {
	switch {
	case api.CodeOf(err) == api.CodeInvalid: // it is the caller's, and no byte of it was sent
		return nil, nil, err
	case errors.Is(err, relay.ErrNotSent):
		return nil, api.Wrap(api.CodeUnavailable, err, "node "+p.id+" cannot be reached"), nil
	case errors.Is(err, context.DeadlineExceeded) && !time.Now().Before(until):
		// A time-out before that is the kernel's: the machine has been cut off.
		return nil, nil, api.Wrap(api.CodeDeadline, err, "node "+p.id+" did not answer in time")
	}
	// Whatever broke this connection broke the idle ones too, most likely: a
	// daemon that was killed. They must not cost an invocation each.
	p.up.Close()
	e := api.Wrap(api.CodeNodeLost, err, "the connection to node "+p.id+" broke; whether the function ran is not known")
	e.Remedy = "seal the request again if it may run twice"
	return nil, nil, e
}

// admit asks a node to hold a slot.
func (c *Coordinator) admit(p *peer, what *task, until time.Time, sent func(), existing bool) (t api.Ticket, refusal, fatal error) {
	headers := append([]relay.Header{clock()}, what.needs().headers...)
	if existing {
		headers = append(headers, existingOnly)
	}
	reply, err := p.up.PostThen(until, api.NodePathAdmit+what.r.target, relay.Empty(), sent, headers...)
	if err != nil {
		_, refusal, fatal = c.broken(p, until, err)
		return t, refusal, fatal
	}
	c.observe(p, reply)
	code := api.Code(reply.Header(api.HeaderRefused))
	if code != "" || reply.Status != fasthttp.StatusOK {
		err := problemOf(reply)
		if final(code) {
			return t, nil, err
		}
		return t, err, nil
	}
	b, err := reply.Bytes(64 << 10)
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err != nil {
		return t, api.Wrap(api.CodeUnavailable, err, "node "+p.id+" gave no ticket"), nil
	}
	return t, nil, nil
}

// problemOf reads a refused reply.
func problemOf(reply *relay.Reply) error {
	status, code := reply.Status, api.Code(reply.Header(api.HeaderRefused))
	b, err := reply.Bytes(64 << 10)
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the node's refusal could not be read")
	}
	if len(b) == 0 && code != "" { // to a HEAD request
		return api.Errorf(code, "the node refused")
	}
	return api.ParseProblem(status, b)
}
